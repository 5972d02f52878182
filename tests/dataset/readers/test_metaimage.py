"""Tests of MetaImage volumes, compared with the same voxels in a NIfTI file, which nibabel orients."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from medical_files import write_nifti

from mllm.dataset.phantoms.writers import write_mhd
from mllm.dataset.readers import read_images
from mllm.errors import ConfigError, DataError

VOXELS = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.int16)
"""Voxels along I, J and K."""
TURNED = [[0, 0, -1], [0.8, -0.6, 0], [-0.6, -0.8, 0]]
"""Directions of I, J and K in LPS, one per row, as TransformMatrix lists them."""


def write(path, voxels=VOXELS, data=None, **changed):
    """Write a header and voxels in one file; fields that are None are left out."""
    fields = {
        "ObjectType": "Image",
        "NDims": voxels.ndim,
        "Comment": "a note",
        "BinaryData": True,
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "1 2 3",
        "ElementSpacing": "0.5 1 2",
        "DimSize": " ".join(map(str, voxels.shape)),
        "ElementType": "MET_SHORT",
        **changed,
        "ElementDataFile": changed.get("ElementDataFile", "LOCAL"),
    }
    head = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes(head.encode() + (voxels.tobytes(order="F") if data is None else data))
    return path


def assert_same(path, nifti, **options):
    for axis in ("axial", "coronal", "sagittal"):
        images = read_images(path, axis=axis, slice="all", **options)
        expected = read_images(nifti, axis=axis, slice="all", **options)
        assert [np.asarray(image).tobytes() for image in images] == [np.asarray(image).tobytes() for image in expected]


@pytest.mark.parametrize("kind", ["plain", "turned", "compressed", "big endian", "two files", "position from the end"])
def test_a_metaimage_shows_what_the_same_nifti_volume_shows(tmp_path, kind):
    affine = np.diag([0.5, 1, 2, 1])
    path = tmp_path / "a.mha"
    if kind == "turned":
        affine[:3, :3] = np.array(TURNED).T * [0.5, 1, 2]
        write(path, TransformMatrix=" ".join(str(number) for row in TURNED for number in row))
    elif kind == "compressed":
        write(path, CompressedData=True, data=zlib.compress(VOXELS.tobytes(order="F")))
    elif kind == "big endian":
        write(path, ElementByteOrderMSB=True, data=VOXELS.astype(">i2").tobytes(order="F"))
    elif kind == "two files":
        path = write_mhd(tmp_path / "a.mhd", VOXELS.T, (0.5, 1, 2), compressed=True)
    elif kind == "position from the end":
        path = write(tmp_path / "b.mhd", HeaderSize=-1, ElementDataFile="b.raw", data=b"")
        (tmp_path / "b.raw").write_bytes(b"a header" + VOXELS.tobytes(order="F"))
    else:
        write(path)
    nifti = write_nifti(tmp_path / "a.nii", VOXELS, affine=np.diag([-1, -1, 1, 1]) @ affine)
    assert_same(path, nifti)
    assert_same(path, nifti, window=(300, 400), square=False)


def test_volumes_of_a_series_and_a_2d_image(tmp_path):
    series = np.stack([VOXELS, VOXELS[::-1]], axis=-1)
    matrix = " ".join(map(str, np.eye(4, dtype=int).reshape(-1)))
    path = write(tmp_path / "a.mha", series, ElementSpacing="1 1 1 1", TransformMatrix=matrix)
    single = write(tmp_path / "b.mha", VOXELS[::-1], ElementSpacing="1 1 1")
    assert read_images(path, volume=1)[0] == read_images(single)[0] != read_images(path)[0]
    with pytest.raises(DataError, match="a.mha has no volume 2: it has 2"):
        read_images(path, volume=2)
    flat = write(tmp_path / "c.mha", VOXELS[..., 0], ElementSpacing="1 1", TransformMatrix="1 0 0 1")
    expected = np.rint((VOXELS[..., 0].T - VOXELS[..., 0].min()) / np.ptp(VOXELS[..., 0]) * 255)
    assert np.array_equal(np.asarray(read_images(flat)[0])[..., 0], expected)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"ElementType": "MET_STRING"}, "voxels of a type that is not supported"),
        ({"ElementNumberOfChannels": 3}, "only real numbers of one channel"),
        ({"BinaryData": False}, "in text form, which is not supported"),
        ({"DimSize": "4 5 x"}, "has an invalid DimSize"),
        ({"DimSize": "4 5 0"}, "a volume without voxels"),
        ({"DimSize": "40000 50000 60000"}, "with more than 2,147,483,648"),
        ({"DimSize": "4 5 7"}, "truncated or damaged: its header describes more voxels"),
        ({"DimSize": "4 5"}, "must have 2, 3 or 4 dimensions, in NDims and DimSize"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 1 0"}, "has no orientation"),
        ({"TransformMatrix": "1 0 0"}, "has an invalid TransformMatrix"),
        ({"ElementSpacing": "1 0 1"}, "impossible spacing"),
        ({"ElementSpacing": "1 1000 1"}, "which is implausible"),
        ({"CompressedData": True}, "its compressed voxels cannot be read"),
        ({"ElementDataFile": "LIST"}, "in several files or in another folder"),
        ({"ElementDataFile": "../other.raw"}, "in several files or in another folder"),
        ({"ElementDataFile": "gone.raw"}, r"a header without its file of voxels: gone.raw does not exist"),
        ({"NDims": None}, "is not a MetaImage: it has no NDims"),
    ],
)
def test_files_that_are_refused(tmp_path, changed, message):
    with pytest.raises(DataError, match=message) as caught:
        read_images(write(tmp_path / "a.mha", **changed))
    assert caught.value.reason is None or "a note" not in caught.value.reason


def test_invalid_options(tmp_path):
    path = write(tmp_path / "a.mha")
    with pytest.raises(ConfigError, match="unknown axis 'axia': did you mean 'axial'"):
        read_images(path, axis="axia")
    with pytest.raises(ConfigError, match="volume=True must be an index"):
        read_images(path, volume=True)


def test_a_large_volume_is_read_in_the_guarded_process(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mha")
    expected = read_images(path)[0]
    monkeypatch.setattr("mllm.dataset.readers.itk_volumes.CHEAP_BYTES", 10)
    assert read_images(path)[0] == expected
