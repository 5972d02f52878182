"""Tests of the base classes of datasets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mllm.dataset.base import ImageTextDataset
from mllm.dataset.loading.collator import EncodedDataset
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.errors import ConfigError, DataError
from mllm.structures import Failure, Sample, Turn


class Captions(ImageTextDataset):
    """Minimal dataset of a user."""

    required = ("image", "caption")

    def parse(self, row):
        turns = [Turn("user", "<image> Describe."), Turn("assistant", row["caption"])]
        return Sample(images=[self.read_image(row["image"])], turns=turns, group=row["patient"])


def write_rows(folder: Path, rows: list[dict], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def row(number: int, **changes) -> dict:
    return {"image": f"images/{number}.png", "caption": f"caption {number}", "patient": number, **changes}


def test_a_sample_has_its_image_its_source_and_its_group(folder):
    path = write_rows(folder, [row(0), row(1)])
    sample = Captions(path).sample(1)
    expected = np.asarray(Image.open(folder / "images" / "1.png"))
    np.testing.assert_array_equal(np.asarray(sample.images[0]), expected)
    assert sample.turns[1].text == "caption 1"
    assert sample.source == f"{path}, line 2"
    assert sample.group == "1"
    assert Captions(path).group(1) == "1"


def test_images_are_below_image_folder_or_at_an_absolute_path(folder):
    rows = [row(0, image="0.png"), row(0, image=str(folder / "images" / "0.png")), row(0, image="../images/0.png")]
    dataset = Captions(write_rows(folder, rows), folder / "images")
    pictures = [np.asarray(sample.images[0]) for sample in dataset]
    assert len(pictures) == 3
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])
    with pytest.raises(DataError, match="image_folder .*none does not exist"):
        Captions(dataset.records.path, folder / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "images/9.png"}, r"image .*images/9\.png does not exist"),
        ({"image": 3}, r"image must be a path, or an object with a 'path', not 3"),
        ({"caption": ""}, r"field 'caption' is empty"),
        ({"caption": None}, r"field 'caption' is empty"),
        ({"caption": "no\0 finding"}, r"the text of the assistant has a NUL character at character 3: remove it"),
        ({"image": "rows.jsonl"}, r".*rows\.jsonl.*"),
    ],
)
def test_the_message_about_an_invalid_row_begins_with_its_location(folder, changes, message):
    path = write_rows(folder, [row(0), row(1, **changes)])
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}, line 2: {message}"):
        Captions(path).sample(1)


@pytest.mark.parametrize("name", ["caption", "patient"])
def test_the_message_about_a_missing_field_has_the_nearest_one(folder, name):
    wrong = row(0)
    wrong[name.capitalize()] = wrong.pop(name)
    path = write_rows(folder, [wrong])
    with pytest.raises(DataError) as excinfo:
        Captions(path).sample(0)
    assert str(excinfo.value) == f"{path}, line 1: field '{name}' is missing: did you mean '{name.capitalize()}'?"


def test_a_missing_column_of_a_csv_has_the_same_message(folder):
    path = folder / "rows.csv"
    path.write_text("image,Question,answer\nimages/0.png,what?,this\n")
    with pytest.raises(DataError) as excinfo:
        VQADataset(path).sample(0)
    assert str(excinfo.value) == f"{path}, line 2: field 'question' is missing: did you mean 'Question'?"


def test_a_failure_of_parse_has_row_class_and_cause(folder):
    class Broken(Captions):
        def parse(self, row):
            return row["caption"] / 2

    path = write_rows(folder, [row(0)])
    with pytest.raises(DataError, match=r"line 1: Broken\.parse failed with TypeError: ") as excinfo:
        Broken(path).sample(0)
    assert isinstance(excinfo.value.__cause__, TypeError)


def test_a_parse_that_returns_no_sample_is_refused(folder):
    class Wrong(Captions):
        def parse(self, row):
            return row

    with pytest.raises(ConfigError, match=r"Wrong\.parse must return a Sample, not dict"):
        Wrong(write_rows(folder, [row(0)])).sample(0)


def test_reader_options_of_row_and_dataset_are_passed_on(folder):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    frames[0].save(folder / "stack.tiff", save_all=True, append_images=frames[1:])
    path = write_rows(folder, [row(0, image={"path": "stack.tiff", "page": 1}), row(0, image="stack.tiff")])
    assert Captions(path).sample(0).images[0].getpixel((0, 0)) == (0, 255, 0)
    assert Captions(path, reader={"page": 2}).sample(1).images[0].getpixel((0, 0)) == (0, 0, 255)
    assert Captions(path, reader={"page": 2}).sample(0).images[0].getpixel((0, 0)) == (0, 255, 0)
    with pytest.raises(ConfigError, match=r"line 2: .*'pag'"):
        Captions(path, reader={"pag": 2}).sample(1)
    with pytest.raises(DataError, match=r"line 2: .*has 3 images, but one is expected"):
        Captions(path, reader={"page": [0, 1, 2]}).sample(1)


def test_augmentation_is_a_function_of_seed_epoch_and_index(folder):
    path = write_rows(folder, [row(0), row(0)])
    flips = [dict(type="GaussianNoise", std=20)]

    def pixels(seed: int, epoch: int, index: int) -> bytes:
        return Captions(path, transforms=flips, seed=seed).sample(index, epoch).images[0].tobytes()

    assert pixels(1, 2, 0) == pixels(1, 2, 0)
    assert len({pixels(1, 2, 0), pixels(2, 2, 0), pixels(1, 3, 0), pixels(1, 2, 1)}) == 4
    with pytest.raises(ConfigError, match="did you mean 'GaussianNoise'"):
        Captions(path, transforms=[dict(type="GausianNoise")])


def identity(sample: Sample) -> Sample:
    return sample


def first(items: list) -> object:
    return items[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_samples_and_messages(folder, context):
    rows = [row(0), row(1, image="images/9.png"), row(2), row(3, caption=None), row(4), row(5)]
    dataset = VQADataset(
        write_rows(folder, [{**r, "question": "what?", "answer": r["caption"]} for r in rows]),
        transforms=[dict(type="GaussianNoise", std=20)],
        seed=3,
    )
    encoded = EncodedDataset(dataset, identity)
    # A spawned worker imports PyTorch, which takes seconds, so the test has one.
    workers = 2 if context == "fork" else 1
    loader = DataLoader(encoded, num_workers=workers, collate_fn=first, multiprocessing_context=context)
    expected, loaded = [encoded[i] for i in range(len(encoded))], list(loader)
    assert [type(item) for item in expected] == [Sample, Failure, Sample, Failure, Sample, Sample]
    for item, other in zip(expected, loaded, strict=True):
        if isinstance(item, Failure):
            assert item == other
        else:
            assert (item.turns, item.source, item.group) == (other.turns, other.source, other.group)
            assert item.images[0].tobytes() == other.images[0].tobytes()


def test_the_default_miniature_can_be_read_by_every_subclass(tmp_path):
    dataset = Captions(**Captions.miniature(tmp_path / "train", 5))
    other = Captions(**Captions.miniature(tmp_path / "validation", 5))
    samples = [dataset.sample(i) for i in range(5)]
    assert len({sample.images[0].tobytes() for sample in samples}) == 5
    assert not {dataset.group(i) for i in range(5)} & {other.group(i) for i in range(5)}
    again = Captions(**Captions.miniature(tmp_path / "train", 5))
    assert [s.images[0].tobytes() for s in again] == [s.images[0].tobytes() for s in samples]
