"""Tests of the construction of datasets from a config."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mllm.dataset.single_image_dataset
from mllm.config.schema import DataArgs
from mllm.dataset.builder import build_dataset, build_datasets, open_datasets, use_miniatures
from mllm.dataset.mixing import ConcatDataset, MixedDataset, PatientSplit
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS

PLUG_IN = '''
from mllm.dataset.base import ImageTextDataset
from mllm.registry import DATASETS
from mllm.structures import Sample, Turn


@DATASETS.register_module()
class {name}(ImageTextDataset):
    """One question and one answer about one image. Row: {{"image", "question", "answer", "patient"}}."""

    def __init__(self, data_path: str, image_folder: str, modality: str):
        super().__init__(data_path, image_folder)
        self.modality = modality

    def parse(self, row: dict) -> Sample:
        return Sample(
            images=[self.read_image(row["image"])],
            turns=[Turn("user", f"<image> {{self.modality}}: {{row['question']}}"), Turn("assistant", row["answer"])],
            group=row["patient"],
        )
'''


HIDING = '''
from mllm.dataset.base import ImageTextDataset
from mllm.registry import DATASETS


@DATASETS.register_module()
class HidingPluginDataset(ImageTextDataset):
    """A dataset whose attribute has the name of a method."""

    def __init__(self, data_path: str):
        super().__init__(data_path)
        self.{name} = ["a", "b"]

    def parse(self, row: dict):
        raise NotImplementedError
'''


@pytest.fixture
def rows(tmp_path):
    Image.new("RGB", (16, 16), "gray").save(tmp_path / "a.png")

    def write(name: str, patients: list[str]) -> str:
        lines = [dict(image="a.png", question=f"{name} {n}?", answer="yes", patient=p) for n, p in enumerate(patients)]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(tmp_path / name)

    return write


@pytest.fixture
def clean_registry():
    """Remove the classes that a test has registered, and their modules."""
    known, modules = set(DATASETS.module_dict), set(sys.modules)
    yield
    for name in set(DATASETS.module_dict) - known:
        del DATASETS.module_dict[name]
    for name in [name for name in set(sys.modules) - modules if "plugin" in name or "dropped" in name]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["rows", "measures", "group", "summary", "plain"])
def test_an_attribute_that_hides_a_method_is_refused(name, rows, clean_registry, tmp_path, monkeypatch):
    (tmp_path / "plugin_hiding.py").write_text(HIDING.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("plugin_hiding")
    with pytest.raises(ConfigError, match=f"HidingPluginDataset has an attribute '{name}', which hides the method"):
        build_dataset(dict(type="HidingPluginDataset", data_path=rows("a.jsonl", ["p1"])))


def test_nested_datasets_are_built(rows):
    a, b = rows("a.jsonl", ["p1", "p2"]), rows("b.jsonl", ["p3"])
    dataset = build_dataset(
        dict(
            type="MixedDataset",
            weights=(1, 1),
            datasets=[
                dict(
                    type="ConcatDataset",
                    datasets=[dict(type="VQADataset", data_path=a), dict(type="VQADataset", data_path=b)],
                ),
                dict(type="SubsetDataset", size=1, dataset=dict(type="DummyDataset", size=5)),
            ],
        ),
        seed=11,
    )
    assert isinstance(dataset, MixedDataset)
    assert isinstance(dataset.datasets[0], ConcatDataset)
    assert len(dataset) == 4
    assert dataset.seed == 11
    assert [leaf.describe(i) for leaf, i in dataset.datasets[0].rows()] == [
        f"{a}, line 1",
        f"{a}, line 2",
        f"{b}, line 1",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(data_path="x"), "^data_args must be a dict with a 'type', not {'data_path': 'x'}$"),
        (
            dict(type="VQADatset"),
            r"^unknown type 'VQADatset' in registry datasets: did you mean 'VQADataset'\? \(data_args\)$",
        ),
        (dict(type="VQADataset"), r"^data_args \(VQADataset\) needs the key 'data_path'$"),
        (dict(type="VQADataset", data_path=None), r"^data_args\.data_path must be text, not None$"),
        (
            dict(type="VQADataset", data_path="x", image_foldr="y"),
            r"^unknown key 'image_foldr' in data_args \(VQADataset\): did you mean 'image_folder'\?$",
        ),
        (dict(type="DummyDataset", seed=-1), r"^data_args\.seed must be at least 0, not -1$"),
        (dict(type="DummyDataset", tasks=("coutning",)), r"^data_args \(DummyDataset\): .*did you mean 'counting'"),
        (dict(type="ConcatDataset", datasets=3), r"^data_args\.datasets must be a list, not 3$"),
        (dict(type="PatientSplit", dataset=[]), r"^data_args\.dataset must be a dict with a 'type', not \[\]$"),
        (
            dict(type="ConcatDataset", datasets=[dict(type="X")]),
            r"^unknown type 'X' in registry datasets.* \(data_args\.datasets\.0\)$",
        ),
    ],
)
def test_invalid_options_are_refused_with_their_location(options, message):
    with pytest.raises(ConfigError, match=message):
        build_dataset(options)


def test_splits_without_options_are_absent_and_seeds_have_their_defaults(rows):
    data = rows("a.jsonl", ["p1"])
    noise = [dict(type="GaussianNoise", std=20)]
    splits = build_datasets(
        DataArgs(
            train=dict(type="VQADataset", data_path=data, transforms=noise), test=dict(type="DummyDataset", size=3)
        ),
        seed=5,
    )
    assert list(splits) == ["train", "test"]
    assert splits["train"].seed == 5
    assert splits["test"].seed == 2
    dummies = build_datasets(DataArgs(train=dict(type="DummyDataset"), validation=dict(type="DummyDataset")), seed=5)
    assert [dataset.seed for dataset in dummies.values()] == [0, 1]
    halves = dict(type="PatientSplit", dataset=dict(type="DummyDataset", seed=0), fractions=(0.5, 0.25, 0.25))
    parts = build_datasets(
        DataArgs(**{split: dict(halves, split=split) for split in ("train", "validation", "test")}), seed=5
    )
    assert sum(len(part) for part in parts.values()) == 64


def test_a_patient_in_two_splits_is_refused(rows):
    train, test = rows("train.jsonl", ["anna", "bert"]), rows("test.jsonl", ["carl", "bert"])
    data_args = DataArgs(train=dict(type="VQADataset", data_path=train), test=dict(type="VQADataset", data_path=test))
    with pytest.raises(DataError) as excinfo:
        open_datasets(data_args)
    assert str(excinfo.value).startswith(
        f"1 patient is in both train and test, for example {train}, line 2 and {test}, line 2"
    )
    assert "bert" not in str(excinfo.value)


def use_plug_in(name: str, rows, tmp_path: Path) -> None:
    dataset = build_dataset(
        dict(
            type=name,
            data_path=rows("own.jsonl", ["p1", "p2"]),
            image_folder=str(tmp_path),
            modality="CT",
            transforms=[dict(type="GaussianNoise", std=20)],
        ),
        seed=4,
    )
    sample = dataset.sample(1)
    assert sample.turns[0].text == "<image> CT: own.jsonl 1?"
    assert sample.group == "p2"
    assert np.asarray(sample.images[0]).std() > 1
    assert dataset.seed == 4
    with pytest.raises(ConfigError, match=rf"unknown key 'modalty' in data_args \({name}\): did you mean 'modality'"):
        build_dataset(dict(type=name, data_path="x", image_folder="y", modalty="CT"))
    with pytest.raises(ConfigError, match=rf"data_args \({name}\) needs the key 'modality'"):
        build_dataset(dict(type=name, data_path="x", image_folder="y"))


def test_a_class_of_25_lines_is_registered_by_its_import(rows, tmp_path, monkeypatch, clean_registry):
    source = PLUG_IN.format(name="ImportedDataset")
    assert len(source.strip().splitlines()) <= 25
    (tmp_path / "plugin_of_mine.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("plugin_of_mine")
    use_plug_in("ImportedDataset", rows, tmp_path)


def test_a_file_in_the_package_is_registered(rows, tmp_path, monkeypatch, clean_registry):
    folder = tmp_path / "dropped_in"
    folder.mkdir()
    package = Path(mllm.dataset.single_image_dataset.__file__)
    shutil.copy(package, folder / "__init__.py")
    (folder / "mine.py").write_text(PLUG_IN.format(name="DroppedDataset"))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("dropped_in")
    use_plug_in("DroppedDataset", rows, tmp_path)


def test_miniatures_replace_absent_files_only(rows, tmp_path, caplog):
    present = rows("there.jsonl", ["p1"])
    split = dict(
        type="PatientSplit", dataset=dict(type="VQADataset", data_path="gone.jsonl", reader=dict(window="lung"))
    )
    data_args = DataArgs(
        train=dict(
            type="MixedDataset",
            weights=(1, 2, 1),
            datasets=[
                dict(type="VQADataset", data_path=present),
                dict(type="VQADataset", data_path="gone.jsonl", image_folder="gone"),
                dict(type="DummyDataset", size=9),
            ],
        ),
        validation=dict(split, split="validation"),
        on_error="skip",
    )
    with caplog.at_level(logging.INFO, "mllm.dataset.builder"):
        small = use_miniatures(data_args, tmp_path / "mini")
    assert len(caplog.messages) == 2
    assert "gone.jsonl does not exist" in caplog.messages[0]
    assert small.on_error == "skip"
    assert small.test is None
    assert small.train["datasets"][0] == dict(type="VQADataset", data_path=present)
    assert small.train["datasets"][2] == dict(type="DummyDataset", size=9)
    splits = build_datasets(small)
    assert len(splits["train"]) == 1 + 8 + 9
    assert [splits["validation"].sample(i).images[0].size for i in range(8)] == [(224, 224)] * 8
    assert use_miniatures(small, tmp_path / "mini") == small
    unchanged = DataArgs(train=dict(type="PatientSplit", dataset=dict(type="VQADataset", data_path=present)))
    assert use_miniatures(unchanged, tmp_path / "mini") == unchanged
    assert isinstance(build_datasets(DataArgs(train=dict(unchanged.train, fractions=(1, 0, 0))))["train"], PatientSplit)


def test_miniatures_can_be_read_by_a_class_with_few_parameters(rows, tmp_path, monkeypatch, clean_registry):
    (tmp_path / "plugin_tiny.py").write_text(PLUG_IN.format(name="TinyDataset"))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("plugin_tiny")
    options = dict(type="TinyDataset", data_path="gone.jsonl", image_folder="gone", modality="CT")
    small = use_miniatures(DataArgs(train=options), tmp_path / "mini")
    assert build_datasets(small)["train"][0].turns[0].text.startswith("<image> CT: ")
