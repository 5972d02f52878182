"""Written folders match the patients; they are read with csv, PyAV and nibabel."""

import csv
from collections import defaultdict

import av
import nibabel
import numpy as np
import pytest

from mllm.dataset.phantoms.echo_folders import write_camus, write_echonet


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def echonet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echonet")
    return folder, write_echonet(folder, {"TRAIN": 5, "VAL": 1, "TEST": 2}, seed=3, frames=30)


def test_echonet_has_the_official_files(echonet):
    folder, patients = echonet
    assert (folder / "FileList.csv").read_text().splitlines()[0] == (
        "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"
    )
    assert (folder / "VolumeTracings.csv").read_text().splitlines()[0] == "FileName,X1,Y1,X2,Y2,Frame"
    rows = {row["FileName"]: row for row in table(folder / "FileList.csv")}
    assert [row["Split"] for row in rows.values()] == ["TRAIN"] * 5 + ["VAL"] + ["TEST"] * 2
    assert sorted(path.name for path in (folder / "Videos").iterdir()) == sorted(f"{name}.avi" for name in rows)
    for patient in patients:
        row = rows[patient.name]
        assert {name: float(row[name]) for name in ("EF", "EDV", "ESV")} == patient.heart.measures
        with av.open(str(folder / "Videos" / f"{patient.name}.avi")) as video:
            frames = [frame.to_ndarray(format="gray") for frame in video.decode(video=0)]
        assert len(frames) == int(row["NumberOfFrames"]) == patient.frames
        assert frames[0].shape == (112, 112)


def test_tracings_have_21_lines_per_frame_and_give_the_volumes(echonet):
    folder, patients = echonet
    traced = defaultdict(list)
    for row in table(folder / "VolumeTracings.csv"):
        line = [float(row[name]) for name in ("X1", "Y1", "X2", "Y2")]
        traced[row["FileName"], int(row["Frame"])].append(line)
    assert len(traced) == 2 * len(patients)
    first = {}
    for (name, frame), lines in traced.items():
        first.setdefault(name, frame)
        patient = next(patient for patient in patients if f"{patient.name}.avi" == name)
        lines = np.array(lines)
        assert lines.shape == (21, 4)
        lengths = np.hypot(lines[:, 2] - lines[:, 0], lines[:, 3] - lines[:, 1]) * patient.spacing
        volume = np.pi / 4 * np.sum(lengths[1:] ** 2) * lengths[0] / 20 / 1000
        assert volume == pytest.approx(patient.heart.edv if frame == patient.ed else patient.heart.esv, rel=0.01)
    in_order = [first[f"{patient.name}.avi"] == patient.es for patient in patients]
    assert in_order == [number % 5 != 4 for number in range(len(patients))]
    before = {patient.ed < patient.es for patient in patients}
    assert before == {True, False}
    assert {0, 1} <= {patient.ed == 0 for patient in patients} and any(p.ed == p.frames - 1 for p in patients)


def test_the_frames_match_the_traced_phases(echonet):
    """The dark area within the ventricle is larger in the end-diastolic frame than in the end-systolic one."""
    folder, patients = echonet
    for patient in patients:
        with av.open(str(folder / "Videos" / f"{patient.name}.avi")) as video:
            frames = [frame.to_ndarray(format="gray") for frame in video.decode(video=0)]
        dark = [(frame[15:85, 40:80] < 45).sum() for frame in frames]
        assert dark[patient.ed] > dark[patient.es]


def test_a_patient_depends_only_on_the_seed_and_the_number(echonet, tmp_path):
    folder, patients = echonet
    again = write_echonet(tmp_path, {"TRAIN": 2}, seed=3, frames=30)
    assert [one.heart for one in again] == [one.heart for one in patients[:2]]
    for one in again:
        name = f"Videos/{one.name}.avi"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert write_echonet(tmp_path, {"TRAIN": 1}, seed=4, frames=30)[0].heart != again[0].heart


def test_camus_as_nifti(tmp_path):
    patients = write_camus(tmp_path, {"training": 2, "testing": 1}, seed=1, first=7)
    assert (tmp_path / "database_split" / "subgroup_training.txt").read_text() == "patient0007\npatient0008\n"
    for patient in patients:
        home = tmp_path / "database_nifti" / patient.name
        for view in ("2CH", "4CH"):
            facts = dict(line.split(": ") for line in (home / f"Info_{view}.cfg").read_text().splitlines())
            assert (int(facts["ED"]), int(facts["ES"])) == (patient.ed + 1, patient.es + 1)
            assert int(facts["EF"]) == pytest.approx(patient.heart.ef, abs=0.5)
            series = nibabel.load(home / f"{patient.name}_{view}_half_sequence.nii.gz")
            masks = nibabel.load(home / f"{patient.name}_{view}_half_sequence_gt.nii.gz").get_fdata()
            assert series.shape == masks.shape == (160, 160, int(facts["NbFrame"]))
            assert series.header.get_zooms()[:2] == pytest.approx([patient.spacing] * 2)
            for moment, at in (("ED", patient.ed), ("ES", patient.es)):
                one = nibabel.load(home / f"{patient.name}_{view}_{moment}_gt.nii.gz").get_fdata()
                assert np.array_equal(one, masks[..., at])
            assert (masks[..., patient.ed] == 1).sum() > (masks[..., patient.es] == 1).sum()
    assert {patient.ed > patient.es for patient in patients} == {True, False}


def test_camus_as_metaimage(tmp_path):
    (patient,) = write_camus(tmp_path, {"training": 1}, release="mhd")
    home = tmp_path / "training" / patient.name
    assert (tmp_path / "listSubGroups" / "subGroup2_training.txt").read_text() == f"{patient.name}\n"
    facts = dict(line.split(": ") for line in (home / "Info_4CH.cfg").read_text().splitlines())
    assert float(facts["LVef"]) == pytest.approx(patient.heart.ef, abs=0.05)
    assert float(facts["LVedv"]) == pytest.approx(patient.heart.edv, abs=0.05)
    header = (home / f"{patient.name}_4CH_ED.mhd").read_text()
    assert "DimSize = 80 160\n" in header and "CompressedData = False" in header
    assert (home / f"{patient.name}_4CH_ED.raw").stat().st_size == 80 * 160
