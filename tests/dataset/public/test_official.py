"""Damaged rows of official tables: errors of the rows that need them."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.errors import DataError
from mllm.registry import DATASETS

UNEVEN = r"line {}: \d+ values for \d+ columns"
MIMIC = "mimic-cxr-2.0.0-"


def damage(path: Path, row: int) -> None:
    """Damage a row of a table, counted from 0."""
    if path.suffix == ".csv":
        lines = path.read_text().splitlines()
        lines[row + 1] += ",x"
        path.write_text("\n".join(lines) + "\n")
    else:
        is_pickle = path.suffix == ".pkl"
        rows = pickle.loads(path.read_bytes()) if is_pickle else json.loads(path.read_text())
        rows[row] = "x"
        path.write_bytes(pickle.dumps(rows) if is_pickle else json.dumps(rows).encode())


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("ChestXray14Dataset", "Data_Entry_2017.csv", UNEVEN),
        ("ChestXray14BoxDataset", "BBox_List_2017.csv", UNEVEN),
        ("CheXpertDataset", "train.csv", UNEVEN),
        ("MIMICCXRDataset", f"{MIMIC}split.csv", UNEVEN),
        ("MIMICCXRDataset", f"{MIMIC}metadata.csv", rf"split.csv, line .*has no row in .*metadata.csv, of .*{UNEVEN}"),
        ("MIMICCXRLabelDataset", f"{MIMIC}split.csv", UNEVEN),
        ("MIMICCXRLabelDataset", f"{MIMIC}chexpert.csv", UNEVEN),
        (
            "MIMICCXRLabelDataset",
            f"{MIMIC}metadata.csv",
            rf"chexpert.csv, .*has no row in .*metadata.csv.*{UNEVEN}",
        ),
        ("VQARADDataset", "VQA_RAD Dataset Public.json", r"\(row {}\): a row must be an object"),
        ("SLAKEDataset", "train.json", r"\(row {}\): a row must be an object"),
        ("PathVQADataset", "qas/train/train_qa.pkl", "entry {}: must be a dict, not a str"),
        ("IUXrayDataset", "indiana_reports.csv", UNEVEN),
        ("IUXrayDataset", "indiana_projections.csv", UNEVEN),
    ],
)
def test_a_damaged_row_of_a_table_is_an_error_of_one_row(tmp_path: Path, name: str, file: str, message: str, row: int):
    options = {"type": name, **DATASETS.find(name).miniature(tmp_path / "set", 6)}
    path = Path(options["data_path"]) / file
    if file.startswith("indiana"):
        _write_tables(Path(options["data_path"]))
        options["split"] = None
    whole = check_splits({"train": build_dataset(options)}).reports["train"].answers.rows
    damage(path, row)
    report = check_splits({"train": build_dataset(options)}, skip=True).reports["train"]
    (skipped,) = report.skipped
    number = row + (2 if path.suffix == ".csv" else 1)
    assert re.search(message.format(number), skipped)
    assert str(path) in skipped
    assert whole - 1 <= report.answers.rows <= whole  # a lateral image or a second view is missed by no row
    with pytest.raises(DataError, match=message.format(number)):
        check_splits({"train": build_dataset(options)})


def _write_tables(root: Path) -> None:
    """Write the tables of IU X-ray for the images of its other layout."""
    studies = json.loads((root / "annotation.json").read_text())["train"]
    (root / "annotation.json").unlink()
    (root / "images" / "images_normalized").mkdir()
    reports, projections = ["uid,findings,impression"], ["uid,filename,projection"]
    for number, study in enumerate(studies):
        reports.append(f"{number},clear,normal")
        for view, image in enumerate(study["image_path"]):
            name = f"{number}_{view}.png"
            (root / "images" / image).rename(root / "images" / "images_normalized" / name)
            projections.append(f"{number},{name},{'Frontal' if view == 0 else 'Lateral'}")
    (root / "indiana_reports.csv").write_text("\n".join(reports))
    (root / "indiana_projections.csv").write_text("\n".join(projections))


@pytest.mark.parametrize("row", [0, 1])
def test_a_patient_without_a_readable_row_is_an_error_of_its_boxes(tmp_path: Path, row: int):
    options = {"type": "ChestXray14BoxDataset", **DATASETS.find("ChestXray14BoxDataset").miniature(tmp_path / "set", 4)}
    root = Path(options["data_path"])
    image = (root / "BBox_List_2017.csv").read_text().splitlines()[1].partition(",")[0]
    entries = root / "Data_Entry_2017.csv"
    lines = entries.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith(image))
    lines[place] = lines[place] + ",x" if row else lines[place].replace(image, "00099999_009.png")
    entries.write_text("\n".join(lines) + "\n")
    skipped = list(check_splits({"train": build_dataset(options)}, skip=True).reports["train"].skipped)
    assert f"BBox_List_2017.csv, line 2: Image Index '{image}' has no row in {entries}" in skipped[0]
    assert (f"of which a row cannot be read: {entries}, line {place + 1}: " in skipped[0]) == bool(row)


@pytest.mark.parametrize("name", ["RegressionDataset", "MultiLabelDataset", "REGDataset", "TextQADataset"])
def test_a_damaged_first_row_does_not_stop_the_check(tmp_path: Path, name: str):
    options = {"type": name, **DATASETS.find(name).miniature(tmp_path / "set", 4)}
    path = Path(options["data_path"])
    path.write_text("\n".join(["{", *path.read_text().splitlines()[1:]]))
    variants = [{}, {"per": "label", "uncertain": "ignore"}] if name == "MultiLabelDataset" else [{}]
    for more in variants:
        report = check_splits({"train": build_dataset({**options, **more})}, skip=True).reports["train"]
        assert [message for message in report.skipped if f"{path}, line 1" in message and "not valid JSON" in message]
        assert report.answers.rows >= 3
