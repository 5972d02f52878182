"""Fields of rows: each dataset declares those that it reads, and its option `columns` refuses all others."""

import json
from pathlib import Path

import numpy as np
import pytest

from mllm.dataset.base import ImageTextDataset
from mllm.dataset.builder import build_dataset
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.errors import ConfigError
from mllm.registry import DATASETS
from mllm.structures import Sample, Turn

OPTIONS = {
    "GQADataset": [{"version": f"q-{kind}"} for kind in ("a", "c", "bc", "s", "l")],
    "GPT4Gen": [{"version": kind} for kind in ("a", "c", "bc")],
    "ClevrDataset": [{"version": kind} for kind in ("q-a", "q-s")],
    "V7W_POINT": [{"version": kind} for kind in ("b", "p")],
    "Point_QA_twice": [{"version": kind} for kind in ("oq-b", "sq-p", "gq-bp")],
}
CLASSES = [name for name in sorted(DATASETS.locations) if issubclass(DATASETS.find(name), ImageTextDataset)]
NAMED = [name for name in CLASSES if DATASETS.find(name).has_columns]
NOT_FIELDS = {"MultiLabelDataset"}
"""Classes with a column for each label, which their option `labels` names."""


class Recorded(dict):
    """Row that records the fields that are read."""

    def __init__(self, row, names):
        super().__init__(row)
        self.names = names

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name):
        self.names.add(name)
        return super().__contains__(name)

    def get(self, name, default=None):
        self.names.add(name)
        return super().get(name, default)


def texts_and_marks(sample: Sample):
    pixels = [np.asarray(image).tobytes() for image in sample.images]
    return sample.turns, [(mark.box, mark.point) for mark in sample.marks], pixels, sample.group, sample.measures


@pytest.mark.parametrize("name", NAMED)
def test_the_declared_fields_are_those_that_are_read_and_may_have_any_column(name, tmp_path):
    cls = DATASETS.find(name)
    miniature = cls.miniature(tmp_path / "mini", 2)
    path = Path(miniature["data_path"])
    rows = [{"modality": "CT", **json.loads(line)} for line in path.read_text().splitlines()]
    names = [field for field in rows[0] if name not in NOT_FIELDS or field in cls.fields]
    renamed = path.with_name("renamed.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = [{f"my {field}" if field in names else field: value for field, value in row.items()} for row in rows]
    renamed.write_text("".join(json.dumps(row) + "\n" for row in changed))
    read = set()
    for options in OPTIONS.get(name, [{}]):
        data = build_dataset({"type": name, **miniature, **options})
        expected = [texts_and_marks(data.sample(index)) for index in range(len(data))]
        columns = {field: f"my {field}" for field in names if field in cls.fields}
        other = build_dataset({"type": name, **miniature, **options, "data_path": str(renamed), "columns": columns})
        assert [texts_and_marks(other.sample(index)) for index in range(len(data))] == expected
        assert other.measures(0) == data.measures(0)
        data.records = [Recorded(data.records[index], read) for index in range(len(rows))]
        data.describe = str  # the list has no locations
        for index in range(len(rows)):
            data.sample(index)
    assert names and read >= set(cls.required)
    assert {field for field in read if not field.startswith("_") and name not in NOT_FIELDS} <= set(cls.fields)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - set(NAMED)))
def test_official_files_have_fixed_columns(name):
    options = dict(type=name, data_path="absent", columns=dict(image="img"), image_folder="absent")
    known = DATASETS.describe(name).parameters
    with pytest.raises(ConfigError, match=f"{name} reads official files, whose columns have fixed names: remove it"):
        build_dataset({key: value for key, value in options.items() if key in known or key == "type"})


class Findings(VQADataset):
    """Dataset of a user with a further field."""

    optional = ("age",)

    def parse(self, row):
        return Sample([Turn("user", str(row["age"])), Turn("assistant", row["answer"])])


def test_a_class_of_a_user_declares_its_fields(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS.module_dict, "Findings", Findings)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"image": "a", "question": "b", "label": "yes", "years": 7}\n')
    options = dict(type="Findings", data_path=str(path), columns=dict(answer="label", age="years"))
    assert build_dataset(options).sample(0).turns[0].text == "7"
    options["columns"]["weight"] = "kg"
    message = (
        r"unknown field 'weight' in data_args.columns \(Findings\); known are .* \(if Findings reads it, add it to"
    )
    with pytest.raises(ConfigError, match=message):
        build_dataset(options)
