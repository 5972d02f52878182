"""Tests of the summary of the data of a run."""

import json
import math

import pytest
from echo_files import write_echonet

from mllm.dataset.base import ImageTextDataset
from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import SplitReport, Splits
from mllm.dataset.measure_tables import measure_table
from mllm.dataset.summary import summarize
from mllm.errors import ConfigError
from mllm.structures import Failure, Sample, Turn

VALUES = [(50.0, 100.0), (60.0, None), (70.0, 200.0)]


@pytest.fixture
def table(tmp_path):
    rows = [{"file": f"{n}.dcm", "ED": 0, "ES": 1, "EF": ef, "EDV": edv} for n, (ef, edv) in enumerate(VALUES)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dict(type="DicomCineDataset", data_path=str(path))


def test_statistics_of_measures_do_not_read_images(table):
    dataset = build_dataset(table)
    values = measure_table(dataset)
    assert values["EF"].tolist() == [50, 60, 70]
    assert [math.isnan(value) for value in values["EDV"]] == [False, True, False]
    summary = summarize(Splits({"train": dataset}, {"train": SplitReport()}))["train"]
    assert summary["samples"] == 3
    assert summary["measures"]["EF"] == pytest.approx(
        {"known": 3, "unknown": 0, "mean": 60, "std": math.sqrt(200 / 3), "min": 50, "max": 70}
    )
    assert summary["measures"]["EDV"] == {"known": 2, "unknown": 1, "mean": 150, "std": 50, "min": 100, "max": 200}
    assert summary["measures"]["ESV"] == {"known": 0, "unknown": 3}
    assert summary["sources"] == [dataset.summary()]
    json.dumps(summary)


def test_combined_datasets_have_one_summary_per_source(table, tmp_path):
    write_echonet(tmp_path / "echonet", {"TRAIN": 2}, frames=30)
    parts = [table, dict(type="EchoNetDataset", data_path=str(tmp_path / "echonet")), dict(type="DummyDataset", size=3)]
    both = build_dataset(dict(type="ConcatDataset", datasets=parts))
    summary = summarize(Splits({"train": both}, {"train": SplitReport()}))["train"]
    assert summary["samples"] == 8
    assert [source["used"] for source in summary["sources"]] == [3, 2]
    assert summary["measures"]["EF"]["known"] == 5
    assert both.measures(4) == both.datasets[1].measures(1)
    splits = Splits({"train": both}, {"train": SplitReport()})
    splits.add_skipped(
        ("train", Failure(sentence, draw)) for sentence, draw in (("a", None), ("a", (4, 1)), ("b", (3, 0)))
    )
    summary = summarize(splits)["train"]
    assert (summary["skipped"], [source.get("skipped") for source in summary["sources"]]) == (2, [None, 2])
    part = build_dataset(dict(type="SubsetDataset", indices=[0, 2], dataset=table))
    assert measure_table(part)["EF"].tolist() == [50, 70]
    assert part.measures(1)["EF"] == 70


def test_statistics_of_measures_read_no_sample_of_a_class_without_measures(monkeypatch):
    dataset = build_dataset(dict(type="DummyDataset", size=3))
    monkeypatch.setattr(type(dataset), "sample", None)
    assert measure_table(dataset) == {}


def test_measures_of_a_class_that_declares_none_are_refused(tmp_path):
    class Wrong(ImageTextDataset):
        has_measures = False

        def parse(self, row):
            return Sample([Turn("user", "EF?"), Turn("assistant", "50 %")], measures={"EF": 50.0})

    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="Wrong returns measures: set has_measures = True"):
        Wrong(tmp_path / "rows.jsonl").sample(0)
