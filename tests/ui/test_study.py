"""Dropped files: the number of pictures, the view that is shown first, windows, planes and errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from medical_files import SLICE as VALUES
from medical_files import write_avi, write_dicom, write_nifti, write_png, write_series
from PIL import Image

from mllm.dataset.readers import read_images
from mllm.errors import DataError
from mllm.ui.study import View, open_study, without_folders

CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}


def pixels(image):
    return np.asarray(image)[..., 0].astype(int)


def test_a_series_begins_in_its_middle_and_is_cut_along_other_planes(tmp_path):
    study = open_study(write_series(tmp_path / "series"))
    assert (study.option, study.count, study.first_view, study.is_volume) == ("slice", 4, View(2), True)
    assert study.caption(View(2, window="lung")) == "series of 4 files, slice 3 of 4, window lung"
    sagittal = study.along("sagittal")
    assert (sagittal.count, sagittal.first_view) == (20, View(10, "sagittal"))
    assert sagittal.picture(sagittal.first_view).size == (10, 20)  # 4 slices of 5 mm, 10 rows of 1 mm


def test_a_ct_has_named_windows_and_its_whole_range(tmp_path):
    study = open_study([write_dicom(tmp_path / "a.dcm", VALUES, **CT)])
    assert {"lung", "bone", "percentiles"} <= set(study.windows)
    assert study.limits == (-1024.0, 3071.0)
    expected = np.rint(np.clip((VALUES - (40 - 200)) / 400, 0, 1) * 255)
    assert np.abs(pixels(study.picture(View(window=(40, 400)))) - expected).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_range_of_other_gray_files_is_found_from_pictures(tmp_path, photometric):
    values = (VALUES + 1300).astype(np.uint16)  # 300 to 2290
    study = open_study([write_dicom(tmp_path / "a.dcm", values, photometric=photometric, Modality="DX")])
    assert study.windows == ("percentiles",)
    assert study.limits == pytest.approx((300, 2290), abs=20)


def test_color_pictures_and_videos_have_no_window(tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(picture)
    frames = [np.full((32, 48), 60 * number, np.uint8) for number in range(3)]
    video = open_study([write_avi(tmp_path / "a.avi", frames)])
    assert open_study([picture]).windows == video.windows == ()
    assert (video.noun, video.count, video.is_volume) == ("frame", 3, False)
    assert pixels(video.picture(View(2))).mean() == pytest.approx(120, abs=4)


def test_pictures_are_those_of_the_readers(tmp_path):
    volume = write_nifti(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(0, 50, (8, 9, 7)).astype(np.float32))
    study = open_study([volume])
    (expected,) = read_images(volume, slice=3)
    assert study.picture(study.first_view).tobytes() == expected.tobytes()


def test_unusable_files_are_named_without_their_folders(tmp_path, caplog):
    damaged = tmp_path / "scan.dcm"
    damaged.write_bytes(b"no picture at all" * 30)
    with pytest.raises(DataError, match=r"^scan.dcm ") as refusal:
        open_study([damaged])
    assert str(tmp_path) not in str(refusal.value)
    pictures = [write_png(tmp_path / f"{number}.png", np.zeros((9, 9), np.uint8)) for number in range(2)]
    with pytest.raises(DataError, match="drop one file, or the DICOM files of one series"):
        open_study(pictures)
    with pytest.raises(DataError, match="no file was dropped"):
        open_study([])
    open_study(pictures[:1])  # nearly constant, about which readers log a warning with the name of the file
    assert not caplog.records


def test_messages_have_the_names_of_dropped_files_whatever_their_numbers():
    folder = Path("/tmp/session/a.b")
    paths = [folder / f"{number}_IM.dcm" for number in range(12)] + [folder / "12_1", folder / "13_1.dcm"]
    message = (
        f"{paths[11]} and {paths[1]} of {folder}: 1_IM.dcm, 11_IM.dcm, (12_1), {paths[13]}. {paths[12]}, 1_IM.dcm.gz"
    )
    expected = "IM.dcm and IM.dcm of the series: IM.dcm, IM.dcm, (1), 1.dcm. 1, 1_IM.dcm.gz"
    assert without_folders(message, paths) == expected
