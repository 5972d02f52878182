"""Tests of EchoNet-Dynamic: frames, areas and counts, compared with the phantoms in its files."""

import csv
import logging
import math
import re
import shutil

import numpy as np
import pytest
from echo_files import write_echonet
from medical_files import write_avi

from mllm.config.schema import DataArgs
from mllm.dataset import builder
from mllm.dataset.builder import build_dataset, build_datasets, use_miniatures
from mllm.dataset.checking import check_splits
from mllm.errors import ConfigError, DataError

SPLITS = {"TRAIN": 6, "VAL": 2, "TEST": 3}


def open_dataset(folder, split="TRAIN", **options):
    return build_dataset(dict(type="EchoNetDataset", data_path=str(folder), split=split, **options))


def rewrite(path, change):
    """Replace every row (a dict) of a table by the rows that `change` returns."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(new for row in rows for new in change(row))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echonet")
    return folder, write_echonet(folder, SPLITS, seed=5, frames=30)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Folder with videos in which the brightness of a frame encodes its number; read only."""
    folder = tmp_path_factory.mktemp("numbered")
    patients = write_echonet(folder, {"TRAIN": 4, "VAL": 1}, seed=5, frames=30)
    for number, patient in enumerate(patients):
        codec = ("ffv1", "mpeg4", "mjpeg", "libx264", "ffv1")[number]
        pictures = [np.full((32, 32), 8 * frame, np.uint8) for frame in range(patient.frames)]
        write_avi(folder / "Videos" / f"{patient.name}.avi", pictures, codec)
    return folder, patients


@pytest.fixture
def fresh(numbered, tmp_path):
    """Copy of `numbered` for one test."""
    folder, patients = numbered
    return shutil.copytree(folder, tmp_path, dirs_exist_ok=True), patients


def frames_of(sample):
    return {
        view: round(float(np.asarray(image).mean()) / 8)
        for view, image in zip(sample.views, sample.images, strict=True)
    }


@pytest.mark.parametrize("split", ["TRAIN", "val", "Test"])
def test_a_split_is_its_patients_with_their_values(whole, split):
    folder, patients = whole
    expected = [patient for patient in patients if patient.split == split.upper()]
    dataset = open_dataset(folder, split)
    assert len(dataset) == len(expected)
    for index, patient in enumerate(expected):
        sample = dataset.sample(index)
        assert sample.views == ["ED", "ES"]
        assert [image.size for image in sample.images] == [(112, 112)] * 2
        assert sample.measures == dataset.measures(index) == patient.heart.measures
        assert sample.group == dataset.group(index) == patient.name
        assert sample.source == f"{folder / 'FileList.csv'}, line {2 + patients.index(patient)}"
        user, assistant = sample.turns
        assert user.text.count("<image>") == 2
        heart = patient.heart
        assert assistant.text == f"EF {heart.ef:.1f} %, EDV {heart.edv:.1f} mL, ESV {heart.esv:.1f} mL."
    assert len(open_dataset(folder, None)) == sum(SPLITS.values())


def test_frames_are_found_by_name_in_any_codec_and_order(fresh):
    folder, patients = fresh
    dataset = open_dataset(folder, None)
    assert [frames_of(dataset.sample(index)) for index in range(len(patients))] == [
        {"ED": patient.ed, "ES": patient.es} for patient in patients
    ]
    assert {patient.ed < patient.es for patient in patients} == {True, False}
    assert any(patient.ed == 0 for patient in patients), "the first frame is among them"
    assert any(patient.ed == patient.frames - 1 for patient in patients), "the last frame is among them"


def test_orders_that_disagree_with_the_areas_are_counted(whole, caplog):
    folder, patients = whole
    with caplog.at_level(logging.INFO):
        summary = open_dataset(folder, None).summary()
    later = sum(patient.ed < patient.es for patient in patients)
    swapped = sum(number % 5 == 4 for number in range(len(patients)))
    assert summary["ED is the larger traced area"] == {
        "file order disagrees": swapped,
        "index order disagrees": later,
    }
    assert f"the order of the file disagrees in {swapped}, the order of the frames in {later}" in caplog.text
    assert summary["videos of each split"] == SPLITS
    assert summary["used"] == 11
    assert summary["dropped"] == {}
    assert summary["EF against the volumes, points"]["largest"] < 1e-9


def test_suffixes_may_occur_in_either_table(whole, fresh):
    folder, patients = fresh
    rewrite(folder / "FileList.csv", lambda row: [{**row, "FileName": row["FileName"] + ".avi"}])
    rewrite(folder / "VolumeTracings.csv", lambda row: [{**row, "FileName": row["FileName"].removesuffix(".avi")}])
    dataset = open_dataset(folder, None)
    assert [dataset.group(index) for index in range(5)] == [patient.name for patient in patients]
    assert frames_of(dataset.sample(0)) == {"ED": patients[0].ed, "ES": patients[0].es}


def test_videos_may_be_of_another_format_than_avi(fresh):
    folder, patients = fresh
    rewrite(folder / "FileList.csv", lambda row: [{**row, "FileName": row["FileName"] + ".mp4"}])
    for path in list((folder / "Videos").iterdir()):
        path.rename(path.with_suffix(".mp4"))
    dataset = open_dataset(folder, None)
    assert dataset.summary()["video files missing"] == 0
    assert frames_of(dataset.sample(1)) == {"ED": patients[1].ed, "ES": patients[1].es}
    (folder / "Videos" / f"{patients[0].name}.mp4").unlink()
    with pytest.raises(DataError, match=rf"FileList.csv, line 2: .*{patients[0].name}.avi does not exist"):
        check_splits({"train": open_dataset(folder, None)})


def test_echonet_pediatric_has_points_and_folds_and_no_volumes(fresh):
    folder, patients = fresh
    lines = ["FileName,X,Y,Frame"]
    for patient in patients:
        for frame, side in ((patient.ed, 20), (patient.es, 10)):
            lines += [f"{patient.name}.avi,{x},{y},{frame}" for x, y in ((0, 0), (side, 0), (side, side), (0, side))]
    (folder / "VolumeTracings.csv").write_text("\n".join([*lines, f"{patients[0].name}.avi,,,No Systolic"]) + "\n")
    rows = [f"{patient.name}.avi,{patient.heart.ef},F,3,15,100,{i % 2}" for i, patient in enumerate(patients)]
    (folder / "FileList.csv").write_text("\n".join(["FileName,EF,Sex,Age,Weight,Height,Split", *rows]) + "\n")
    fold = open_dataset(folder, "1")
    assert [fold.group(index) for index in range(len(fold))] == [patients[1].name, patients[3].name]
    assert fold.measures(0)["EF"] == pytest.approx(patients[1].heart.ef)
    assert all(math.isnan(fold.measures(0)[name]) for name in ("EDV", "ESV"))
    sample = fold.sample(0)
    assert frames_of(sample) == {"ED": patients[1].ed, "ES": patients[1].es}
    assert "Give EF (%)." in sample.turns[0].text


def test_unusable_videos_are_dropped_and_counted(fresh):
    folder, patients = fresh
    one, two, three, four = (patient.name for patient in patients[:4])

    def trace(row):
        if row["FileName"] == f"{one}.avi":
            return [row] if int(row["Frame"]) == patients[0].ed else []
        if row["FileName"] == f"{two}.avi":
            return [row, {**row, "Frame": "1", "X1": float(row["X1"]) + 1}] if int(row["Frame"]) != 1 else []
        return [row]

    def listed(row):
        if row["FileName"] == three:
            return [{**row, "EF": "nan", "ESV": "", "EDV": "-1"}]
        return [{**row, "EF": "0"}] if row["FileName"] == four else [row]

    rewrite(folder / "VolumeTracings.csv", trace)
    rewrite(folder / "FileList.csv", listed)
    dataset = open_dataset(folder)
    assert [dataset.group(index) for index in range(len(dataset))] == [two, four]
    summary = dataset.summary()
    assert summary["dropped"] == {"without two traced frames": 1, "without a known measure": 1}
    assert summary["more than two traced frames"] == 1
    assert summary["unknown"] == {"EF": 1, "EDV": 0, "ESV": 0}
    sample = dataset.sample(1)
    assert math.isnan(sample.measures["EF"])
    assert "EF" not in sample.turns[0].text + sample.turns[1].text
    (folder / "Videos" / f"{two}.avi").unlink()
    assert open_dataset(folder).summary()["video files missing"] == 1
    with pytest.raises(DataError, match=rf"FileList.csv, line 3: .*{two}.avi does not exist"):
        dataset.sample(0)


def test_size_draws_by_seed(whole):
    folder, _ = whole
    drawn = [open_dataset(folder, size=3, seed=seed) for seed in (0, 0, 1, 2)]
    groups = [[dataset.group(index) for index in range(3)] for dataset in drawn]
    assert groups[0] == groups[1]
    assert len({tuple(group) for group in groups}) > 1
    assert drawn[0].summary()["dropped"] == {"beyond size=3": 3}
    assert len(open_dataset(folder, size=11_000)) == 6
    with pytest.raises(ConfigError, match="size must be at least 1, not 0"):
        open_dataset(folder, size=0)


def test_augmentation_moves_both_frames_equally(whole):
    folder, _ = whole
    plain = open_dataset(folder).sample(0)
    flipped = open_dataset(folder, transforms=[dict(type="RandomFlip", probability=1.0)]).sample(0)
    for image, mirrored in zip(plain.images, flipped.images, strict=True):
        assert np.array_equal(np.asarray(image)[:, ::-1], np.asarray(mirrored))
    assert flipped.views == ["ED", "ES"]
    assert flipped.measures == plain.measures


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (
            "FileList.csv",
            lambda row: [{**row, "EF": "high"}],
            r"csv, line 2: field 'EF' must be a number, not 'high'",
        ),
        (
            "FileList.csv",
            lambda row: [row, row],
            r"line 3: duplicate video '0X.*it is also in .*FileList.csv, line 2",
        ),
        ("FileList.csv", lambda row: [{**row, "Split": "fold 1"}], r"has no split 'TRAIN'; known are FOLD 1"),
        (
            "VolumeTracings.csv",
            lambda row: [{**row, "Frame": "x"}],
            r"line 2: must have four coordinates and the",
        ),
        ("VolumeTracings.csv", lambda row: [{**row, "FileName": "other"}], r"no video .* can be used: 4 without two"),
    ],
)
def test_malformed_tables_are_refused_with_file_and_line(fresh, table, change, message):
    folder, _ = fresh
    rewrite(folder / table, change)
    with pytest.raises(DataError, match=message):
        check_splits({"train": open_dataset(folder)})


@pytest.mark.parametrize(
    ("table", "line", "change", "message"),
    [
        ("FileList.csv", 3, lambda values: [*values, "x"], r"FileList.csv, line 3: \d+ values for \d+ columns"),
        (
            "FileList.csv",
            3,
            lambda values: [values[0], "high", *values[2:]],
            r"List.csv, line 3: field 'EF' must be",
        ),
        (
            "VolumeTracings.csv",
            2,
            lambda values: [*values[:-1], "x"],
            r"FileList.csv, line \d: .*VolumeTracings.csv, line 2: must have four",
        ),
    ],
)
def test_a_damaged_row_of_a_table_is_an_error_of_one_video(fresh, table, line, change, message):
    folder, _ = fresh
    rows = len(open_dataset(folder))
    lines = (folder / table).read_text().splitlines()
    lines[line - 1] = ",".join(change(lines[line - 1].split(",")))
    (folder / table).write_text("\n".join(lines))
    data = open_dataset(folder)
    report = check_splits({"train": data}, skip=True).reports["train"]
    (skipped,) = report.skipped
    assert re.search(message, skipped)
    assert len(data) == rows
    assert report.answers.rows == data.summary()["used"] == rows - 1


def test_missing_columns_files_and_frames_are_refused(fresh):
    folder, patients = fresh
    tracings = folder / "VolumeTracings.csv"
    text = tracings.read_text()
    tracings.write_text(text.replace("FileName,X1,Y1", "FileName,X1,y1", 1))
    with pytest.raises(DataError, match=r"VolumeTracings.csv, line 1: must be FileName,X1,Y1,X2,Y2,Frame, not"):
        open_dataset(folder)
    tracings.write_text(text)
    beyond = patients[0].frames + 7
    rewrite(tracings, lambda row: [{**row, "Frame": beyond} if int(row["Frame"]) == patients[0].es else row])
    with pytest.raises(DataError, match=rf"FileList.csv, line 2: .*has no frame {beyond}"):
        open_dataset(folder).sample(0)
    listed = folder / "FileList.csv"
    listed.write_text(listed.read_text().replace("EDV", "Volume", 1))
    with pytest.raises(DataError, match="column 'EDV' is missing"):
        open_dataset(folder)
    tracings.unlink()
    with pytest.raises(DataError, match="VolumeTracings.csv does not exist: data_path must be the folder"):
        open_dataset(folder)


def test_a_miniature_replaces_absent_data(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "MINIATURE_ROWS", 2)
    split = dict(type="EchoNetDataset", data_path=str(tmp_path / "gone"), size=100)
    data_args = DataArgs(train={**split, "split": "TRAIN"}, validation={**split, "split": "VAL"})
    datasets = build_datasets(use_miniatures(data_args, tmp_path / "mini"))
    assert [len(dataset) for dataset in datasets.values()] == [2, 2]
    sample = datasets["validation"].sample(1)
    assert sample.views == ["ED", "ES"] and sample.measures["EDV"] > sample.measures["ESV"]
