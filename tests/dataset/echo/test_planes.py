"""Tests of 2D images in both formats; directions in their headers are ignored."""

import nibabel
import numpy as np
import pytest

from mllm.dataset.echo.planes import read_plane, to_square_pixels
from mllm.dataset.phantoms.writers import write_mhd, write_nifti
from mllm.errors import DataError

PIXELS = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "<f4"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimages(tmp_path, dtype, compressed):
    path = write_mhd(tmp_path / "a.mhd", PIXELS.astype(dtype), (0.5, 0.25, 1), compressed)
    for frame in range(3):
        plane, spacing = read_plane(path, frame)
        assert np.array_equal(plane, PIXELS[frame])
        assert spacing == (0.5, 0.25)
    one = write_mhd(tmp_path / "one.mhd", PIXELS[1], (0.5, 0.25), compressed)
    assert np.array_equal(read_plane(one)[0], PIXELS[1])


def test_a_big_endian_metaimage_in_one_file(tmp_path):
    head = "NDims = 2\nDimSize = 5 4\nElementSpacing = 1 2\nElementType = MET_USHORT\nElementByteOrderMSB = True\n"
    pixels = (PIXELS[0].astype(int) * 300).astype(">u2")
    (tmp_path / "a.mha").write_bytes((head + "ElementDataFile = LOCAL\n").encode() + pixels.tobytes())
    assert np.array_equal(read_plane(tmp_path / "a.mha")[0], pixels)


@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (-1, 1)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_is_read_as_it_is_stored(tmp_path, signs, suffix):
    affine = np.diag([0.5 * signs[0], 0.25 * signs[1], 1, 1])
    path = write_nifti(tmp_path / f"a{suffix}", PIXELS.T, affine=affine)
    assert nibabel.load(path).shape == (5, 4, 3)
    for frame in range(3):
        plane, spacing = read_plane(path, frame)
        assert np.array_equal(plane, PIXELS[frame])
        assert spacing == (0.5, 0.25)
    assert np.array_equal(read_plane(write_nifti(tmp_path / f"b{suffix}", PIXELS[2].T, affine=affine))[0], PIXELS[2])


def test_images_have_square_pixels():
    values = np.tile(np.array([[0, 100]], np.uint8), (8, 2))
    picture = np.asarray(to_square_pixels((values, (2.0, 1.0))))
    assert picture.shape == (8, 8, 3)
    assert np.array_equal(np.asarray(to_square_pixels((values, (1.0, 1.0))))[..., 0], values)
    assert np.asarray(to_square_pixels((values.astype(np.float32), (1.0, 1.0)))).max() == 255


def test_files_that_are_not_planes_are_refused(tmp_path):
    series = write_mhd(tmp_path / "s.mhd", PIXELS, (1, 1, 1))
    with pytest.raises(DataError, match="s.mhd has 3 frames, but one image is expected"):
        read_plane(series)
    with pytest.raises(DataError, match="s.mhd has 3 frames, but frame 3 is required, counted from 0"):
        read_plane(series, 3)
    with pytest.raises(DataError, match="gone.mhd does not exist"):
        read_plane(tmp_path / "gone.mhd")
    (tmp_path / "s.raw").write_bytes(b"short")
    with pytest.raises(DataError, match="s.mhd is truncated or damaged"):
        read_plane(series, 0)
    (tmp_path / "s.raw").unlink()
    with pytest.raises(DataError, match=r"s.mhd is a header without its file of voxels: s.raw does not exist"):
        read_plane(series, 0)
    (tmp_path / "text.mhd").write_text("hello\n")
    with pytest.raises(DataError, match="text.mhd is not a MetaImage: it has no NDims"):
        read_plane(tmp_path / "text.mhd")
    (tmp_path / "a.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="a.nii.gz cannot be read: it is damaged"):
        read_plane(tmp_path / "a.nii.gz")
    flat = write_mhd(tmp_path / "flat.mhd", PIXELS[0], (0, 1))
    with pytest.raises(DataError, match="flat.mhd has an impossible spacing"):
        read_plane(flat)
