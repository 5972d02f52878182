"""Tests of own cines: frames by number from DICOM files and videos, and messages about invalid rows."""

import csv
import json
import math

import numpy as np
import pytest
from medical_files import write_avi, write_dicom

from mllm.config.schema import DataArgs
from mllm.dataset import builder
from mllm.dataset.builder import build_dataset, build_datasets, open_datasets, use_miniatures
from mllm.errors import DataError

ROW = {"file": "a.dcm", "ED": 7, "ES": 2, "EF": 55.5, "EDV": 120, "ESV": 53.4, "patient": "p1"}


@pytest.fixture
def folder(tmp_path):
    gray = np.stack([np.full((32, 32), 10 * number, np.uint8) for number in range(12)])
    write_dicom(tmp_path / "a.dcm", gray, Modality="US", WindowCenter=128, WindowWidth=256, VOILUTFunction="LINEAR")
    write_dicom(tmp_path / "b.dcm", np.stack([gray] * 3, axis=-1), Modality="US")
    write_avi(tmp_path / "c.avi", list(gray), "ffv1")
    return tmp_path


def open_dataset(folder, *rows, **options):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_dataset(dict(type="DicomCineDataset", data_path=str(path), **options))


def frames_of(sample):
    pairs = zip(sample.views, sample.images, strict=True)
    return {view: round(float(np.asarray(image).mean()) / 10) for view, image in pairs}


def test_an_unreadable_row_is_counted(folder):
    summary = open_dataset(folder, ROW, {**ROW, "EDV": "about 100"}, {**ROW, "EF": ""}).summary()
    assert (summary["used"], summary["unreadable"]) == (2, 1)
    assert summary["unknown"] == {"EF": 1, "EDV": 0, "ESV": 0}


@pytest.mark.parametrize("file", ["a.dcm", "b.dcm", "c.avi"])
@pytest.mark.parametrize(("ed", "es"), [(7, 2), (0, 11), (11, 0)])
def test_frames_by_number(folder, file, ed, es):
    sample = open_dataset(folder, {**ROW, "file": file, "ED": ed, "ES": es}).sample(0)
    assert frames_of(sample) == {"ED": ed, "ES": es}
    assert sample.measures == {"EF": 55.5, "EDV": 120, "ESV": 53.4}
    assert sample.group == "p1"
    assert sample.turns[0].text.count("<image>") == 2
    assert sample.turns[1].text == "EF 55.5 %, EDV 120.0 mL, ESV 53.4 mL."
    assert sample.source.endswith("rows.jsonl, line 1")


def test_a_table_of_text(folder):
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "ED", "ES", "EF", "EDV"])
        writer.writerows([["a.dcm", "7", "2.0", "55.5", ""], ["c.avi", "1", "4", "nan", "0"]])
    dataset = build_dataset(dict(type="DicomCineDataset", data_path=str(path)))
    sample = dataset.sample(0)
    assert frames_of(sample) == {"ED": 7, "ES": 2}
    assert sample.measures["EF"] == 55.5
    assert math.isnan(sample.measures["EDV"]) and math.isnan(sample.measures["ESV"])
    assert sample.group == "a.dcm"
    assert dataset.summary()["unknown"] == {"EF": 1, "EDV": 2, "ESV": 2}
    with pytest.raises(DataError, match=r"rows.csv, line 3: none of EF, EDV, ESV is known"):
        dataset.sample(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ED": None}, r"line 1: field 'ED' is missing or empty: DICOM cines and videos do not mark"),
        ({"ES": ""}, r"field 'ES' is missing or empty: .*set their numbers, counted from 0, in the fields ED and ES"),
        ({"ES": 1.5}, r"field 'ES' must be the number of a frame from 0, not 1.5"),
        ({"ED": -1}, r"field 'ED' must be the number of a frame"),
        ({"ED": "x"}, r"field 'ED' must be the number of a frame from 0, not 'x'"),
        ({"ED": 2}, r"ED and ES are both frame 2"),
        ({"ED": 12}, r"line 1: .*a.dcm has no frame 12: it has 12, from 0 to 11"),
        ({"file": "gone.dcm"}, r"line 1: image .*gone.dcm does not exist"),
        ({"EF": True}, r"line 1: field 'EF' must be a number, not True"),
        ({"EF": "good"}, r"line 1: field 'EF' must be a number, not 'good'"),
    ],
)
def test_messages_about_invalid_rows(folder, change, message):
    with pytest.raises(DataError, match=message):
        open_dataset(folder, {**ROW, **change}).sample(0)


def test_augmentation_and_leakage(folder):
    rows = [{**ROW, "file": name, "patient": None} for name in ("a.dcm", "b.dcm")]
    flipped = open_dataset(folder, *rows, transforms=[dict(type="RandomFlip", probability=1.0)], seed=1)
    assert frames_of(flipped.sample(1)) == {"ED": 7, "ES": 2}
    split = dict(type="DicomCineDataset", data_path=str(folder / "rows.jsonl"))
    with pytest.raises(DataError, match="2 patients are in both train and test"):
        open_datasets(DataArgs(train=split, test=split))


def test_a_miniature_replaces_absent_data(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "MINIATURE_ROWS", 2)
    split = dict(type="DicomCineDataset", data_path=str(tmp_path / "gone.csv"), image_folder="gone")
    datasets = build_datasets(use_miniatures(DataArgs(train=split, test=split), tmp_path / "mini"))
    assert [len(dataset) for dataset in datasets.values()] == [2, 2]
    assert datasets["test"].sample(1).measures["EDV"] > 50
