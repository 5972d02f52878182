"""Tests of worker processes that inspect rows: the results are those of this process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mllm.dataset import inspection
from mllm.dataset.base import SampleDataset
from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.dataset.single_image_dataset.res import RESDataset
from mllm.dataset.tasks.annotated import DetectionDataset
from mllm.errors import DataError
from mllm.private_messages import call_privately
from mllm.structures import Sample, Turn


@pytest.fixture
def dataset(tmp_path):
    """Two sources with boxes and masks, in which two rows cannot be used."""
    options = [dict(RESDataset.miniature(tmp_path / "res", 20), type="RESDataset")]
    path = Path(options[0]["data_path"])
    rows = 35 * [json.loads(line) for line in path.read_text().splitlines()]
    rows[300] = {**rows[300], "bbox": [0, 0, 9000, 9000]}
    rows[600] = {**rows[600], "img_path": "absent.png"}
    lines = (json.dumps({**row, "patient": f"P{number // 3}"}) for number, row in enumerate(rows))
    path.write_text("\n".join(lines) + "\n")
    options.append(dict(DetectionDataset.miniature(tmp_path / "boxes", 20), type="DetectionDataset"))
    return build_dataset(dict(type="ConcatDataset", datasets=options))


def report(dataset, workers):
    """Return the result of the check of a split as plain values."""
    result = check_splits({"train": dataset}, skip=True, workers=workers).reports["train"]
    values = (result.content, result.patients, result.without_patient, list(result.skipped))
    answers = vars(result.answers)
    return *values, answers, [(row.number, row.index) for row in result.longest], result.modalities


@pytest.mark.parametrize("is_private", [False, True])
def test_the_report_of_workers_is_that_of_one_process(dataset, monkeypatch, is_private):
    expected = call_privately(lambda: report(dataset, 2), is_private)
    assert len(expected[3]) == 2 and expected[4]["rows"] == 718
    monkeypatch.setattr(inspection, "MANY_ROWS", 1)
    assert call_privately(lambda: report(dataset, 2), is_private) == expected
    assert ("absent.png" in expected[3][1]) is not is_private


class Ending(SampleDataset):
    """Dataset that ends the process which inspects a row, unless it made the dataset."""

    reads_files = False

    def __init__(self) -> None:
        self.process = os.getpid()

    def __len__(self):
        return 3

    def sample(self, index, epoch=0):
        return Sample([Turn("user", "a"), Turn("assistant", "b")])

    def inspect(self, index):
        if os.getpid() != self.process:
            os._exit(1)
        return self.sample(index)

    def describe(self, index, epoch=0):
        return f"row {index}"

    def group(self, index, epoch=0):
        return None


def test_the_end_of_a_worker_is_one_sentence(monkeypatch):
    assert check_splits({"train": Ending()}, workers=1).reports["train"].answers.rows == 3  # few rows need no worker
    monkeypatch.setattr(inspection, "MANY_ROWS", 1)
    with pytest.raises(DataError, match="a process that checked the rows of train ended unexpectedly.*num_workers=0"):
        check_splits({"train": Ending()}, workers=1)
