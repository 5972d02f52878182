"""Limit of the pixels of a selection: each reader refuses it before it decodes the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medical_files import pydicom_file, write_avi, write_nifti
from PIL import Image

from mllm.dataset.phantoms.writers import write_mhd
from mllm.dataset.readers import image, read_images, video
from mllm.dataset.readers.pixel_limit import TooManyPixelsError, limited_pixels

VOXELS = np.zeros((100, 80, 5), np.int16)


def gif(path: Path) -> Iterable[Image.Image]:
    pictures = [Image.new("L", (100, 80), number) for number in range(3)]
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:])
    return image.pages(path, [0] * 5, None)


def avi(path: Path) -> Iterable[Image.Image]:
    write_avi(path.with_suffix(".avi"), list(np.zeros((4, 80, 100, 3), np.uint8)), "mjpeg")
    return video.selected_frames(path.with_suffix(".avi"), "all")


def dicom(path: Path) -> Iterable[Image.Image]:
    return read_images(pydicom_file("CT_small.dcm"), frames=[0] * 5)


def nifti(path: Path, **options: Any) -> Iterable[Image.Image]:
    return read_images(write_nifti(path.with_suffix(".nii"), VOXELS), slice="all", **options)


def sagittal(path: Path) -> Iterable[Image.Image]:
    return nifti(path, axis="sagittal")


def metaimage(path: Path) -> Iterable[Image.Image]:
    return read_images(write_mhd(path.with_suffix(".mhd"), VOXELS.T, (1, 1, 1)), slice="all")


def resampled(path: Path) -> Iterable[Image.Image]:
    """Read a slice whose square pixels are many more than the stored ones."""
    return read_images(write_nifti(path.with_suffix(".nii"), VOXELS, (1, 30, 1)), slice=[0])


@pytest.mark.parametrize(
    "read, decoder, pixels",
    [
        (gif, "image._load", "its images have 40,000 pixels, and the limit is 25,000: select fewer"),
        (avi, "video._seek_and_decode", "its images have 32,000 pixels"),
        (dicom, "dicom.decode", "its images have 81,920 pixels"),
        (nifti, "nifti._planes", "its images have 40,000 pixels"),
        (sagittal, "nifti._planes", "its images have 102,400 pixels"),  # small ones count as 1,024
        (metaimage, "itk_volumes.plane_images", "its images have 40,000 pixels"),
        (resampled, "geometry.Image.Image.resize", "its images have more than 25,000 pixels"),
    ],
)
def test_a_selection_beyond_the_limit_is_refused_before_it_is_decoded(
    read: Callable[[Path], Iterable[Image.Image]],
    decoder: str,
    pixels: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert list(read(tmp_path / "a")), "without a limit it is read"

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it is decoded")

    monkeypatch.setattr(f"mllm.dataset.readers.{decoder}", fail)
    with limited_pixels(25_000), pytest.raises(TooManyPixelsError, match=pixels):
        list(read(tmp_path / "a"))


def test_pages_of_different_sizes_are_counted_one_after_the_other(tmp_path: Path) -> None:
    pictures = [Image.new("L", size) for size in ((10, 10), (100, 80), (90, 80))]
    pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=pictures[1:])
    with limited_pixels(20_000):
        assert len(read_images(tmp_path / "a.tif", page=[1, 2])) == 2, "the guarded process has the limit"
        with pytest.raises(TooManyPixelsError, match="its images have more than 20,000 pixels, the limit"):
            read_images(tmp_path / "a.tif", page=[1, 1, 2])
