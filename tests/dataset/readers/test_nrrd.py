"""Tests of NRRD volumes, compared with the same voxels in a NIfTI file, which nibabel orients."""

from __future__ import annotations

import bz2
import gzip

import numpy as np
import pytest
from medical_files import write_nifti

from mllm.dataset.readers import read_images
from mllm.errors import DataError

VOXELS = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.int16)
LPS = np.diag([-1, -1, 1, 1])
TURNED = np.array([[0, 0, -0.5], [0.8, -0.6, 0], [-1.2, -1.6, 0]])
"""Steps along I, J and K, one per row."""


def write(path, voxels=VOXELS, data=None, **changed):
    """Write a header, a pair of key and value, a comment, and voxels; fields that are None are left out."""
    fields = {
        "type": "short",
        "dimension": voxels.ndim,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, voxels.shape)),
        "space_directions": "(0.5,0,0) (0,1,0) (0,0,2)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space_origin": "(1,2,3)",
        **changed,
    }
    lines = [f"{name.replace('_', ' ')}: {value}\n" for name, value in fields.items() if value is not None]
    head = "NRRD0004\n# a comment\n" + "".join(lines) + "patient:=a note\n\n"
    path.write_bytes(head.encode() + (voxels.tobytes(order="F") if data is None else data))
    return path


def assert_same(path, nifti):
    for axis in ("axial", "coronal", "sagittal"):
        images, expected = (read_images(file, axis=axis, slice="all") for file in (path, nifti))
        assert [np.asarray(image).tobytes() for image in images] == [np.asarray(image).tobytes() for image in expected]


@pytest.mark.parametrize(
    "changed, to_ras",
    [
        ({}, LPS),
        ({"encoding": "gzip", "data": gzip.compress(VOXELS.tobytes(order="F"))}, LPS),
        ({"encoding": "bzip2", "data": bz2.compress(VOXELS.tobytes(order="F"))}, LPS),
        ({"endian": "big", "data": VOXELS.astype(">i2").tobytes(order="F")}, LPS),
        ({"space": "right-anterior-superior"}, np.eye(4)),
        ({"space": "LAS"}, np.diag([-1, 1, 1, 1])),
        ({"space": None, "space_directions": None, "kinds": None, "spacings": "0.5 1 2"}, LPS),
        ({"byte_skip": 6, "data": b"header" + VOXELS.tobytes(order="F")}, LPS),
        ({"byte_skip": -1, "data": b"header" + VOXELS.tobytes(order="F")}, LPS),
    ],
)
def test_a_nrrd_file_shows_what_the_same_nifti_volume_shows(tmp_path, changed, to_ras):
    path = write(tmp_path / "a.nrrd", **changed)
    assert_same(path, write_nifti(tmp_path / "a.nii", VOXELS, affine=to_ras @ np.diag([0.5, 1, 2, 1])))


def test_directions_and_a_second_file(tmp_path):
    steps = " ".join(f"({','.join(map(str, row))})" for row in TURNED)
    path = write(tmp_path / "a.nhdr", space_directions=steps, data_file="./a.raw", data=b"")
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes(order="F"))
    affine = np.eye(4)
    affine[:3, :3] = TURNED.T
    assert_same(path, write_nifti(tmp_path / "a.nii", VOXELS, affine=LPS @ affine))


@pytest.mark.parametrize("place", ["first", "last"])
def test_volumes_of_a_series_and_a_2d_image(tmp_path, place):
    axis = 0 if place == "first" else 3
    kinds, steps = ["domain"] * 3, ["(1,0,0)", "(0,1,0)", "(0,0,1)"]
    kinds.insert(axis, "list")
    steps.insert(axis, "none")
    series = np.stack([VOXELS, VOXELS[::-1]], axis=axis)
    path = write(tmp_path / "a.nrrd", series, kinds=" ".join(kinds), space_directions=" ".join(steps))
    single = write(tmp_path / "b.nrrd", VOXELS[::-1], space_directions="(1,0,0) (0,1,0) (0,0,1)")
    assert read_images(path, volume=1)[0] == read_images(single)[0] != read_images(path)[0]
    with pytest.raises(DataError, match="has no volume 2: it has 2"):
        read_images(path, volume=2)
    options = {"kinds": "domain domain", "space": None, "space_directions": None}
    flat = write(tmp_path / "c.nrrd", VOXELS[..., 0], **options)
    expected = np.rint((VOXELS[..., 0].T - VOXELS[..., 0].min()) / np.ptp(VOXELS[..., 0]) * 255)
    assert np.array_equal(np.asarray(read_images(flat)[0])[..., 0], expected)


def test_a_series_as_itk_writes_it_has_four_axes_of_space(tmp_path):
    """Header of SimpleITK 2.5 for an image with four dimensions."""
    steps = "(0.5,0,0,0) (0,1,0,0) (0,0,2,0) (0,0,0,1.5)"
    itk = {"space": None, "space_dimension": 4, "space_origin": "(0,0,0,0)", "kinds": "domain domain domain domain"}
    path = write(tmp_path / "a.nrrd", np.stack([VOXELS, VOXELS[::-1]], axis=3), space_directions=steps, **itk)
    single = write(tmp_path / "b.nrrd", VOXELS[::-1])
    assert read_images(path, volume=1, slice="all") == read_images(single, slice="all")
    moving = write(
        tmp_path / "c.nrrd", np.stack([VOXELS] * 2, axis=3), **itk, space_directions="(1,0,0,1) " + steps[12:]
    )
    with pytest.raises(DataError, match="has invalid space directions"):
        read_images(moving)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"type": "block"}, "has a type that is not supported"),
        ({"encoding": "hex"}, "has an encoding that is not supported"),
        ({"endian": None}, "does not name the byte order"),
        ({"sizes": "4 5 x"}, "has invalid sizes"),
        ({"sizes": "4 5 -6"}, "a volume without voxels"),
        ({"sizes": "4 5"}, "another number of sizes than dimensions"),
        ({"sizes": "4 5 7"}, "truncated or damaged: its header describes more voxels"),
        ({"kinds": "RGB-color domain domain"}, "its axes have other kinds"),
        ({"kinds": "domain domain"}, "another number of kinds or directions"),
        ({"space_directions": "(1,0,0) (0,1,0) (0,0)"}, "invalid space directions"),
        ({"space_directions": "(1,0,0) (1,0,0) (0,0,1)"}, "has no orientation"),
        ({"space_directions": "(0,0,0) (0,1,0) (0,0,1)"}, "impossible spacing"),
        ({"encoding": "gzip"}, "its compressed voxels cannot be read"),
        ({"data_file": "LIST"}, "in several files or in another folder"),
        ({"data_file": "/tmp/a.raw"}, "in several files or in another folder"),
        ({"data_file": "gone.raw"}, "gone.raw does not exist beside it"),
        ({"line_skip": 1}, "skips lines"),
        ({"sizes": None}, "is not a NRRD volume: its header has no 'sizes'"),
    ],
)
def test_files_that_are_refused(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        read_images(write(tmp_path / "a.nrrd", **changed))


def test_a_file_of_another_format_or_without_the_end_of_its_header(tmp_path):
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"no volume" * 20)
    with pytest.raises(DataError, match="does not begin with NRRD"):
        read_images(path)
    path.write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 1 1 1\nencoding: raw\nendian: little\n")
    with pytest.raises(DataError, match="its header has no end"):
        read_images(path)
