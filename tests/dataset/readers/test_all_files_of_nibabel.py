"""Comparison of the readers of volumes and pictures with other decodings, over the files of nibabel and shared data."""

from __future__ import annotations

import gzip
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest

from mllm.dataset.readers import read_images
from mllm.errors import DataError

ROOT = Path(nibabel.__file__).parent
SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}


def expected_picture(path: Path) -> np.ndarray:
    """Return the middle axial slice, [H, W] uint8, of voxels that are read by their offsets in a NIfTI header."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    order = "<" if data[0] in (348 % 256, 540 % 256) else ">"
    is_second = np.frombuffer(data, f"{order}i4", 1)[0] == 540

    def field(kind, first, second, count=1):
        return np.frombuffer(data, order + kind, count, second if is_second else first)

    shape = field("i8" if is_second else "i2", 42, 24, 7)[:3]
    kind = TYPES[int(field("i2", 70, 12)[0])]
    offset = int(field("i8" if is_second else "f4", 108, 168)[0])
    slope, intercept = field("f8" if is_second else "f4", 112, 176, 2)
    shown = field("f8" if is_second else "f4", 124, 192, 2)[::-1]
    shape = np.maximum(shape, 1)
    voxels = np.frombuffer(data, order + kind, int(shape.prod()), offset).reshape(shape, order="F").astype(float)
    voxels = voxels * slope + intercept if np.isfinite(slope) and slope != 0 else voxels
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, nibabel.load(path).affine)).get_fdata()
    low, high = shown if shown[1] > shown[0] else (np.nanmin(turned), np.nanmax(turned))
    plane = turned[:, :, turned.shape[2] // 2].T[::-1, ::-1]
    return np.rint(np.nan_to_num(np.clip((plane - low) / (high - low), 0, 1)) * 255)


def test_every_nifti_file_is_decoded_as_by_its_offsets():
    compared = 0
    for path in sorted(file for root in (ROOT, SHARED) for file in root.rglob("*.nii*")):
        try:
            picture = np.asarray(read_images(path, square=False)[0])[..., 0]
        except DataError as error:
            assert "is not a NIfTI volume (it is a Cifti2Image)" in str(error)
            continue
        compared += 1
        difference = np.abs(picture - expected_picture(path))
        assert difference.max() <= 1, path
    assert compared >= 7


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder is not beside this checkout")
def test_every_picture_of_the_shared_data_is_decoded_as_by_opencv():
    files = sorted([*(SHARED / "images").iterdir(), *list((SHARED / "bccd").rglob("*.jpg"))[::20]])
    assert len(files) > 20
    for path in files:
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
        # The decoders of JPEG round differently.
        assert np.abs(np.asarray(read_images(path)[0]) - expected).max() <= (3 if path.suffix == ".jpg" else 0), path


def test_compressed_dicom_files_of_nibabel_show_what_they_show_without_compression(tmp_path):
    files = sorted(ROOT.rglob("*.dcm.gz"))
    assert files
    for path in files:
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        assert read_images(path)[0] == read_images(tmp_path / path.stem)[0], path
