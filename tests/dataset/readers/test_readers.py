"""Tests of the selection of a reader, its options and its errors."""

from __future__ import annotations

import numpy as np
import pytest
from medical_files import write_avi, write_dicom, write_nifti, write_png
from PIL import Image

from mllm.dataset.readers import count_images, read_images, reads_option
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS

GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8)


@pytest.fixture
def one_of_each(tmp_path):
    return [
        write_png(tmp_path / "a.PNG", GRAY),
        write_dicom(tmp_path / "a.Dcm", GRAY),
        write_nifti(tmp_path / "a.NII.GZ".lower(), GRAY[..., None].astype(np.int16)),
        write_avi(tmp_path / "a.avi", [np.kron(GRAY, np.ones((4, 4), np.uint8))]),
    ]


def test_every_reader_returns_rgb_images(one_of_each):
    for path in one_of_each:
        pictures = read_images(str(path))
        assert [picture.mode for picture in pictures] == ["RGB"]
        assert isinstance(pictures[0], Image.Image)


def test_a_dicom_file_is_recognized_by_its_preamble(tmp_path):
    for name in ("IM0001", "1.2.840.10008.5"):
        assert read_images(write_dicom(tmp_path / name, GRAY))[0].size == (8, 6)


@pytest.mark.parametrize("suffix", [".png", ".dcm", ".nii", ".nii.gz", ".avi"])
def test_missing_empty_and_directory(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    with pytest.raises(DataError, match=r"scan\S+ does not exist$"):
        read_images(path)
    path.touch()
    with pytest.raises(DataError, match=r"scan\S+ is empty$"):
        read_images(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"scan\S+ is a folder"):
        read_images(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp", ".dcm", ".nii", ".nii.gz", ".avi", ".mp4"])
@pytest.mark.parametrize("contents", [b"no picture at all, " * 40, b"\0" * 700, b"\x1f\x8b\x08\0\0\0\0\0", b"x"])
def test_content_that_does_not_match_the_suffix(tmp_path, suffix, contents):
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(contents)
    with pytest.raises(DataError, match=r"scan\S+ (is|cannot)") as excinfo:
        read_images(path)
    assert str(excinfo.value).startswith(str(path))


def test_every_truncated_file_is_refused(one_of_each):
    for path in one_of_each:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=path.name):
            read_images(path)


def test_the_message_about_an_unknown_suffix_lists_the_supported_ones(tmp_path):
    path = tmp_path / "slide.svs"
    path.write_bytes(b"II*\0")
    with pytest.raises(DataError, match=r"slide.svs has a suffix that no reader supports; supported are .*\.png"):
        read_images(path)


def test_the_message_about_an_unknown_option_has_the_nearest_one(one_of_each):
    png, dicom, nifti, video = one_of_each
    with pytest.raises(ConfigError, match=r"^unknown key 'frame' in reader \(\.dcm\): did you mean 'frames'\?$"):
        read_images(dicom, frame=0)
    with pytest.raises(ConfigError, match=r"^unknown key 'frames' in reader \(\.png\); known are page, window$"):
        read_images(png, frames=0)
    with pytest.raises(ConfigError, match=r"unknown key 'axes' in reader \(\.nii\.gz\): did you mean 'axis'"):
        read_images(nifti, axes=0)
    with pytest.raises(ConfigError, match=r"unknown key 'window' in reader \(\.avi\); known are frames$"):
        read_images(video, window="lung")


def test_a_registered_reader_is_found_by_its_suffix(tmp_path):
    @READERS.register_module(name=".raw8")
    def read_raw(path, *, width=4):
        return [Image.frombytes("L", (width, path.stat().st_size // width), path.read_bytes()).convert("RGB")]

    try:
        path = tmp_path / "a.raw8"
        path.write_bytes(bytes(range(12)))
        assert read_images(path)[0].size == (4, 3)
        assert read_images(path, width=6)[0].size == (6, 2)
    finally:
        READERS.module_dict.pop(".raw8")


@pytest.mark.parametrize(
    "package, number, extra", [("pydicom", 1, "dicom"), ("nibabel", 2, "nifti"), ("av", 3, "video")]
)
def test_the_message_about_a_missing_package_has_its_extra(one_of_each, monkeypatch, package, number, extra):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install -e \.\[{extra}\]"):
        read_images(one_of_each[number])


def test_the_images_of_a_file_are_counted(tmp_path):
    cine = write_dicom(tmp_path / "cine.dcm", np.stack([GRAY] * 3))
    volume = write_nifti(tmp_path / "a.nii.gz", np.zeros((6, 8, 5), np.int16))
    video = write_avi(tmp_path / "a.avi", [np.kron(GRAY, np.ones((4, 4), np.uint8))] * 4)
    pages = tmp_path / "pages.tif"
    Image.fromarray(GRAY).save(pages, save_all=True, append_images=[Image.fromarray(GRAY + 1)])
    assert count_images(write_png(tmp_path / "a.png", GRAY)) == ("page", 1)
    assert count_images(cine) == ("frames", 3)
    assert count_images(volume) == ("slice", 5)
    assert count_images(volume, axis="sagittal") == ("slice", 6)
    assert count_images(video) == ("frames", 4)
    assert count_images(pages) == ("page", 2)
    assert [reads_option(path, "axis") for path in (volume, [cine], cine, video)] == [True, True, False, False]
    assert reads_option(cine, "window") and not reads_option(video, "window")
    with pytest.raises(DataError, match=r"b.dcm does not exist"):
        count_images(tmp_path / "b.dcm")


def test_square_is_true_or_false(tmp_path):
    """A text, which is true, selected the opposite of "no"."""
    path = write_dicom(tmp_path / "a.dcm", np.zeros((8, 8), np.uint16))
    with pytest.raises(ConfigError, match="square='no' must be True or False"):
        read_images(path, square="no")
