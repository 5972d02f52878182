"""Tests of messages about files whose suffix names another kind than their content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from medical_files import write_png
from PIL import Image

from mllm.dataset.readers import read_images
from mllm.errors import DataError


@pytest.mark.parametrize(
    ("kind", "suffix", "fix"),
    [
        ("dicom", ".png", "a DICOM file: rename it to .dcm"),
        ("dicom", ".nii.gz", "a DICOM file: rename it to .dcm"),
        ("png", ".dcm", "a PNG image: rename it to .png"),
        ("png", ".nii", "a PNG image: rename it to .png"),
        ("png", ".mha", "a PNG image: rename it to .png"),
        ("lfs", ".jpg", "a pointer of Git LFS: fetch the file with git lfs pull"),
        ("lfs", ".dcm", "a pointer of Git LFS: fetch the file with git lfs pull"),
        ("page", ".tif", "a web page: download the file itself"),
        ("zip", ".png", "a zip archive: extract it"),
        ("heic", ".jpg", "a HEIC photo: save it as PNG"),
        ("mp4", ".png", "an MP4 video: rename it to .mp4"),
    ],
)
def test_the_content_of_an_unusable_file_is_named_if_its_suffix_is_another_one(tmp_path, kind, suffix, fix):
    texts = {
        "dicom": Path(pydicom.data.get_testdata_file("MR_small.dcm")).read_bytes(),
        "png": write_png(tmp_path / "b", np.zeros((8, 8), np.uint8)).read_bytes(),
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 5\n",
        "page": b"<!DOCTYPE html><html></html>",
        "heic": bytes(4) + b"ftypheic" + bytes(40),
        "mp4": bytes(4) + b"ftypisom" + bytes(40),
        "zip": b"PK\x03\x04" + bytes(40),
    }
    path = tmp_path / f"a{suffix}"
    path.write_bytes(texts[kind])
    with pytest.raises(DataError) as error:
        read_images(path)
    assert str(error.value).endswith(f" (its content is {fix})")
    assert (error.value.reason or str(error.value)).endswith(f" (its content is {fix})")


def test_a_damaged_file_of_its_suffix_and_an_image_of_pillow_with_another_suffix_have_no_hint(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif")
    read_images((tmp_path / "a.gif").rename(tmp_path / "a.png"))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:12])
    with pytest.raises(DataError) as error:
        read_images(tmp_path / "b.png")
    assert "its content is" not in str(error.value)
