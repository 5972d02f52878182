"""Each dataset of rows reads the miniature that it writes: equal rows and texts, marks inside their images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mllm.dataset.augment.geometric import RandomFlip
from mllm.dataset.builder import build_dataset
from mllm.dataset.single_image_dataset.grounding import GroundingDataset
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import BOX, IMAGE, POINT

OWN = sorted(
    name
    for name, location in DATASETS.locations.items()
    if ".single_image_dataset." in location.module and issubclass(DATASETS.find(name), GroundingDataset)
)
OPTIONS = {"GQADataset": [{"version": f"q-{kind}"} for kind in ("a", "c", "bc", "s", "l")]}
OPTIONS["GPT4Gen"] = [{"version": kind} for kind in ("a", "c", "bc")]
OPTIONS["ClevrDataset"] = [{"version": kind} for kind in ("q-a", "q-s")]
OPTIONS["Point_QA_local"] = [{"version": kind} for kind in ("b", "p", "bp")]
OPTIONS["V7W_POINT"] = [{"version": kind} for kind in ("b", "p")]
OPTIONS["Point_QA_twice"] = [{"version": kind} for kind in ("oq-b", "sq-p", "gq-bp")]
CASES = [(name, options) for name in OWN for options in OPTIONS.get(name, [{}]) if name != "ReferDataset"]
IMAGES = ("image", "image_path", "file_path", "img_path", "img_fn", "image_id", "imageId", "image_filename")
"""Fields that name the image of a row."""


def test_all_datasets_are_covered():
    expected = "RECDataset RESDataset REGDataset GCDataset CaptionDataset FlickrDataset VQAv2Dataset VQAEXDataset"
    expected += " GQADataset ClevrDataset VCRDataset VCRPredDataset InstructDataset POPEVQADataset Point_QA_local"
    assert set(f"{expected} Point_QA_twice V7W_POINT GPT4Gen ReferDataset".split()) == set(OWN)


@pytest.mark.parametrize(
    ("name", "options"), [*CASES, ("ReferDataset", {"task": "REC"}), ("ReferDataset", {})], ids=lambda value: str(value)
)
def test_a_miniature_can_be_read(name, options, tmp_path):
    miniature = DATASETS.find(name).miniature(tmp_path / "mini", 4)
    data = build_dataset(dict(type=name, **miniature, **options))
    assert len(data) == 4
    for index in range(4):
        sample = data.sample(index)
        assert sample.turns == data.sample(index).turns
        width, height = sample.images[0].size
        for turn in sample.turns:
            assert turn.text.count(BOX) + turn.text.count(POINT) == len(turn.marks)
            assert "<expr>" not in turn.text and "<question>" not in turn.text and "<ph_" not in turn.text
            assert all(0 <= mark < len(sample.marks) for group in turn.marks for mark in group)
        assert sample.turns[0].text.startswith(IMAGE) and sample.turns[-1].role == "assistant"
        for mark in sample.marks:
            numbers = mark.box or mark.point
            assert all(0 <= number <= (width, height)[i % 2] for i, number in enumerate(numbers))


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_a_missing_text_is_refused_and_not_supervised(name, options, tmp_path):
    miniature = DATASETS.find(name).miniature(tmp_path / "mini", 1)
    row = json.loads(Path(miniature["data_path"]).read_text().splitlines()[0])
    paths = [field for field in row if field in IMAGES]
    refused = 0
    for field in set(row) - set(paths):
        for missing in (float("nan"), "  ", "NULL", "NA", "N/A", "null"):
            Path(miniature["data_path"]).write_text(json.dumps({**row, field: missing}) + "\n")
            try:
                turns = build_dataset(dict(type=name, **miniature, **options)).sample(0).turns
            except DataError:
                refused += 1
            else:
                text = " ".join(turn.text for turn in turns)
                words = text.replace(".", " ").lower().split()
                assert not {"nan", "null", "na", "n/a"}.intersection(words) and "The answer is ." not in text
    assert refused >= 2


def test_an_empty_explanation_is_never_drawn(tmp_path):
    miniature = DATASETS.find("VQAEXDataset").miniature(tmp_path / "mini", 1)
    path = Path(miniature["data_path"])
    row = json.loads(path.read_text().splitlines()[0])
    for reasons in (["", "it is.", None, "NULL"], []):
        path.write_text(json.dumps({**row, "explanation": reasons, "justification": None}) + "\n")
        data = build_dataset(dict(type="VQAEXDataset", **miniature))
        if reasons:
            assert all(data.sample(0, epoch).turns[-1].text.startswith("it is. The answer") for epoch in range(20))
        else:
            with pytest.raises(DataError, match="field 'explanation' or 'justification' is missing"):
                data.sample(0)


def test_phrasing_changes_with_the_epoch_and_marks_follow_the_image(tmp_path):
    miniature = DATASETS.find("RESDataset").miniature(tmp_path / "mini", 6)
    data = build_dataset(dict(type="RESDataset", **miniature))
    assert len({data.sample(0, epoch).turns[0].text for epoch in range(12)}) > 3
    plain = data.sample(2)
    data.transforms = [RandomFlip(probability=1.0)]
    flipped = data.sample(2)
    x1, y1, x2, y2 = plain.marks[0].box
    width = plain.images[0].width
    assert flipped.marks[0].box == pytest.approx((width - x2, y1, width - x1, y2))
    assert np.array_equal(flipped.marks[0].mask, plain.marks[0].mask[:, ::-1])
    assert replace(flipped.marks[0], box=None, mask=None) == replace(plain.marks[0], box=None, mask=None)
