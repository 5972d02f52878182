"""Tests of the reader of NIfTI volumes."""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medical_files import write_nifti
from PIL import Image

from mllm.dataset.readers import nifti, read_images
from mllm.errors import ConfigError, DataError

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "nifti"
WHEEL = Path(nibabel.__file__).parent / "tests" / "data"


def gray(path, **options):
    return np.asarray(read_images(path, **options)[0])[..., 0]


def to_8_bits(values, low, high):
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def slice_of(volume, axis, index):
    """Return a slice in radiological convention, voxel by voxel, from a volume in RAS+ orientation."""
    right, front, head = volume.shape
    if axis == "axial":
        return np.array([[volume[right - 1 - c, front - 1 - r, index] for c in range(right)] for r in range(front)])
    if axis == "coronal":
        return np.array([[volume[right - 1 - c, index, head - 1 - r] for c in range(right)] for r in range(head)])
    return np.array([[volume[index, front - 1 - c, head - 1 - r] for c in range(front)] for r in range(head)])


@pytest.mark.parametrize("axis, number", [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_axes_and_slices_by_hand(tmp_path, volume, axis, number):
    path = write_nifti(tmp_path / "a.nii.gz", volume)
    count = volume.shape[number]
    for index in range(count):
        expected = to_8_bits(slice_of(volume, axis, index), volume.min(), volume.max())
        assert np.array_equal(gray(path, axis=axis, slice=index), expected)
        assert np.array_equal(gray(path, axis=number, slice=index), expected)
    assert np.array_equal(gray(path, axis=axis), gray(path, axis=axis, slice=count // 2))
    assert len(read_images(path, axis=axis, slice="all")) == count


@pytest.mark.parametrize(
    "code", ["".join(code) for code in itertools.product("RL", "AP", "SI")] + ["PSR", "IRA", "SAL"]
)
def test_every_orientation_gives_the_same_slices(tmp_path, volume, code):
    canonical = nibabel.Nifti1Image(volume, np.eye(4))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
    )
    turned = canonical.as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(turned.affine)) == code
    path = write_nifti(tmp_path / "a.nii", np.asarray(turned.dataobj), affine=turned.affine)
    for axis in ("axial", "coronal", "sagittal"):
        expected = to_8_bits(slice_of(volume, axis, 1), volume.min(), volume.max())
        assert np.array_equal(gray(path, axis=axis, slice=1), expected)


def test_voxels_are_resampled_to_squares(tmp_path):
    path = write_nifti(tmp_path / "a.nii", np.random.default_rng(0).random((8, 10, 4), np.float32), spacing=(2, 2, 5))
    assert read_images(path, axis="axial")[0].size == (8, 10)
    assert read_images(path, axis="coronal")[0].size == (8, 10)
    assert read_images(path, axis="sagittal")[0].size == (10, 10)
    turned = np.array([[0, 0, 5.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "b.nii", np.zeros((8, 10, 4), np.float32), affine=turned)
    assert read_images(path, axis="axial")[0].size == (20, 8)


def test_resampling_is_bilinear(tmp_path):
    volume = np.zeros((4, 1, 2), np.float32)
    volume[..., 1] = 1
    picture = gray(write_nifti(tmp_path / "a.nii", volume, spacing=(1, 1, 2)), axis="coronal")
    expected = Image.fromarray(np.array([[255] * 4, [0] * 4], np.uint8)).resize((4, 4), Image.Resampling.BILINEAR)
    assert np.array_equal(picture, np.asarray(expected))


def test_windows(tmp_path, volume):
    path = write_nifti(tmp_path / "a.nii", volume)
    plane = slice_of(volume, "axial", 3)
    assert np.array_equal(gray(path, window="lung"), to_8_bits(plane, -1350, 150))
    assert np.array_equal(gray(path, window=[0, 500]), to_8_bits(plane, -250, 250))


def test_the_display_range_of_the_file(tmp_path, volume):
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.header["cal_min"], image.header["cal_max"] = -100, 300
    nibabel.save(image, tmp_path / "a.nii")
    assert np.array_equal(gray(tmp_path / "a.nii"), to_8_bits(slice_of(volume, "axial", 3), -100, 300))
    assert np.array_equal(gray(tmp_path / "a.nii", window=(0, 50)), to_8_bits(slice_of(volume, "axial", 3), -25, 25))


def test_stored_slope_is_applied(tmp_path, volume):
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.header.set_slope_inter(0.5, 100)
    nibabel.save(image, tmp_path / "a.nii")
    values = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)
    assert np.array_equal(gray(tmp_path / "a.nii", window=(0, 200)), to_8_bits(slice_of(values, "axial", 3), -100, 100))


def test_nan_is_black_and_infinity_is_ignored(tmp_path):
    volume = np.linspace(1, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    volume[0, 0, 2], volume[1, 1, 2] = np.nan, np.inf
    picture = gray(write_nifti(tmp_path / "a.nii", volume))
    assert picture[2, 1] == 0
    assert picture[1, 0] == 255
    assert picture[0, 0] == to_8_bits(volume[1, 2, 2], 1, 2)


def test_volumes_of_a_series(tmp_path):
    series = np.random.default_rng(0).random((3, 4, 5, 6), np.float32)
    path = write_nifti(tmp_path / "a.nii.gz", series)
    for index in (0, 5):
        expected = to_8_bits(
            slice_of(series[..., index], "axial", 2), series[..., index].min(), series[..., index].max()
        )
        assert np.array_equal(gray(path, volume=index), expected)
    with pytest.raises(DataError, match=r"a.nii.gz has no volume 6: it has 6, from 0 to 5"):
        read_images(path, volume=6)
    with pytest.raises(ConfigError, match="volume=True"):
        read_images(path, volume=True)


@pytest.mark.parametrize("window", [(0, 900), "percentiles", None])
def test_of_an_uncompressed_file_single_slices_are_read(tmp_path, monkeypatch, window):
    """The slices are those of the compressed file, whose voxels are all read."""
    series = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7, 2)).astype(np.int16)
    affine = np.diag([-1, 1, 1, 1])[:, [2, 0, 1, 3]]
    plain, packed = (write_nifti(tmp_path / name, series, affine=affine) for name in ("a.nii", "a.nii.gz"))
    shapes = []
    read = nifti._Volume._read

    def recorded(volume, part):
        values = read(volume, part)
        shapes.append(values.shape)
        return values

    monkeypatch.setattr(nifti._Volume, "_read", recorded)
    for _ in range(2):
        for normal in range(3):
            for index in range(2):
                pictures = (gray(path, axis=normal, slice=index, volume=1, window=window) for path in (plain, packed))
                assert np.array_equal(*pictures)
    whole = sum(min(shape) > 1 for shape in shapes)
    assert (len(shapes), whole) == ((24, 12) if window == (0, 900) else (25, 13)), "the range is computed once"
    packed.unlink()
    series[0] += 4000
    write_nifti(plain, series, affine=affine)
    os.utime(plain, ns=(1, 1))
    assert np.array_equal(
        gray(plain, volume=1, window=window), gray(write_nifti(packed, series, affine=affine), volume=1, window=window)
    ), "the range of a file that changed is computed again"


def test_a_single_slice_and_a_flat_image(tmp_path):
    flat = np.arange(12, dtype=np.int16).reshape(3, 4)
    for path in (write_nifti(tmp_path / "a.nii", flat), write_nifti(tmp_path / "b.nii", flat[..., None])):
        assert np.array_equal(gray(path), to_8_bits(slice_of(flat[..., None], "axial", 0), 0, 11))


def test_invalid_options(tmp_path, volume):
    path = write_nifti(tmp_path / "a.nii", volume)
    with pytest.raises(ConfigError, match="unknown axis 'axail': did you mean 'axial'"):
        read_images(path, axis="axail")
    with pytest.raises(ConfigError, match="axis=3 must be"):
        read_images(path, axis=3)
    with pytest.raises(DataError, match=r"a.nii has no slice 7: it has 7, from 0 to 6"):
        read_images(path, slice=7)
    with pytest.raises(ConfigError, match="unknown window 'lnug': did you mean 'lung'"):
        read_images(path, window="lnug")


def test_volumes_that_are_refused(tmp_path, volume):
    complex_values = write_nifti(tmp_path / "c.nii", np.zeros((2, 2, 2), np.complex64))
    with pytest.raises(DataError, match=r"c.nii has voxels of type complex64"):
        read_images(complex_values)
    lopsided = write_nifti(tmp_path / "l.nii", volume, spacing=(1, 1e-4, 1))
    with pytest.raises(DataError, match=r"l.nii has voxels of 1 by 0.0001"):
        read_images(lopsided)
    image = nibabel.Nifti1Image(volume, None)
    image.header.set_sform(np.diag([0, 1, 1, 1]), code=1)
    nibabel.save(image, tmp_path / "s.nii")
    with pytest.raises(DataError, match=r"s.nii has no orientation"):
        read_images(tmp_path / "s.nii")


@pytest.mark.parametrize(
    "name, axis, size", [("anatomical.nii", "axial", (33, 41)), ("example4d.nii.gz", "sagittal", (96, 26))]
)
def test_real_files(name, axis, size):
    path = DATA / name if (DATA / name).exists() else WHEEL / name
    if not path.exists():
        pytest.skip("neither the shared data folder nor nibabel's test files are here")
    assert read_images(path, axis=axis)[0].size == size
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(canonical.dataobj, np.float32)
    values = values[..., 0] if values.ndim == 4 else values
    low, high = float(canonical.header["cal_min"]), float(canonical.header["cal_max"])
    if high <= low:
        low, high = values.min(), values.max()
    expected = to_8_bits(slice_of(values, "axial", values.shape[2] // 2).astype(float), low, high)
    assert np.array_equal(gray(path, axis="axial"), expected)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_suffix_with_the_wrong_compression_is_accepted(tmp_path, volume, kind):
    nibabel.save(kind(volume, np.eye(4)), tmp_path / "a.nii")
    expected, content = gray(tmp_path / "a.nii"), (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(gzip.compress(content))
    (tmp_path / "b.nii.gz").write_bytes(content)
    assert np.array_equal(gray(tmp_path / "a.nii"), expected)
    assert np.array_equal(gray(tmp_path / "b.nii.gz"), expected)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize(("kind", "first"), [(np.int32, 2**30), (np.uint32, 2**31), (np.float64, 2.0**40)])
def test_integers_that_fp32_cannot_hold_keep_their_steps(tmp_path, kind, first, name):
    """All 256 values that follow each other are as many grays. Rounded to fp32 they are a few, or one."""
    values = (first + np.arange(256)).reshape(16, 16, 1).astype(kind)
    shown = gray(write_nifti(tmp_path / name, values), axis="axial", slice=0)
    assert sorted(shown.ravel().tolist()) == list(range(256))
