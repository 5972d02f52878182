"""Tests of the pixel spacing of images: in mm only where the file has a length in the patient."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from medical_files import write_dicom, write_nifti, write_png

from mllm.dataset.phantoms.writers import write_mhd
from mllm.dataset.readers import read_images
from mllm.dataset.readers.geometry import spacing_of

PIXELS = np.random.default_rng(0).integers(0, 255, (8, 10)).astype(np.uint8)
VOXELS = np.random.default_rng(0).integers(0, 999, (4, 6, 5)).astype(np.int16)


def spacing(path, **options):
    (image,) = read_images(path, **options)
    return spacing_of(image)


def test_the_spacing_of_a_dicom_file_is_its_pixel_spacing(tmp_path):
    """The first number of PixelSpacing is the height of a pixel."""
    path = write_dicom(tmp_path / "a.dcm", PIXELS, PixelSpacing=[0.5, 0.25])
    assert spacing(path, square=False) == (0.25, 0.5)
    assert spacing(path) == (0.25, 0.25)
    # A radiograph is enlarged at the detector; a ratio has no unit; an impossible value is ignored.
    for tags in ({"ImagerPixelSpacing": [0.2, 0.2]}, {"PixelAspectRatio": [1, 1]}, {"PixelSpacing": [0, 1]}, {}):
        assert spacing(write_dicom(tmp_path / "b.dcm", PIXELS, **tags)) is None
    assert spacing(write_png(tmp_path / "a.png", PIXELS)) is None


def test_the_spacing_of_a_resampled_image_is_its_extent_by_its_pixels(tmp_path):
    """Eight rows of 0.3 mm are 2.4 mm, shown by round(2.4 / 0.2 = 12.0) rows; ten columns of 0.2 mm are 2 mm."""
    (image,) = read_images(write_dicom(tmp_path / "a.dcm", PIXELS, PixelSpacing=[0.3, 0.2]))
    assert image.size == (10, 12)
    assert spacing_of(image) == pytest.approx((0.2, 0.2))
    assert spacing_of(image.resize((5, 6))) is None and spacing_of(image.crop((0, 0, 4, 4))) is None


@pytest.mark.parametrize(
    "axis, sides", [("axial", (0.5, 1.0)), ("coronal", (0.5, 3.0)), ("sagittal", (1.0, 3.0))], ids=str
)
def test_the_spacing_of_a_slice_is_that_of_the_other_axes(tmp_path, axis, sides, monkeypatch):
    nifti = write_nifti(tmp_path / "a.nii", VOXELS, spacing=(0.5, 1, 3))
    itk = write_mhd(tmp_path / "a.mhd", VOXELS.T, (0.5, 1, 3))
    for path in (nifti, itk):
        assert spacing(path, axis=axis, square=False) == pytest.approx(sides)
        assert spacing(path, axis=axis) == pytest.approx((min(sides),) * 2)
    monkeypatch.setattr("mllm.dataset.readers.nifti.CHEAP_BYTES", 0)
    assert spacing(nifti, axis=axis, square=False) == pytest.approx(sides)  # from the guarded process


def test_units_of_nifti_are_converted_to_mm(tmp_path):
    for unit, factor in (("mm", 1), ("meter", 1000), ("micron", 0.001), ("unknown", 1)):
        image = nibabel.Nifti1Image(VOXELS, np.diag([0.5, 2, 3, 1]))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "a.nii")
        assert spacing(tmp_path / "a.nii", square=False) == pytest.approx((0.5 * factor, 2 * factor))


def test_headers_without_the_sides_of_voxels_have_no_spacing(tmp_path):
    mhd = write_mhd(tmp_path / "a.mhd", VOXELS.T, (0.5, 1, 3))
    mhd.write_text("".join(line for line in mhd.open() if "Spacing" not in line))
    assert spacing(mhd) is None
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 6 5\nencoding: raw\nendian: little\n"
    lps = "space: left-posterior-superior\nspace directions: (0.5,0,0) (0,1,0) (0,0,2)\n"
    for lines, expected in (
        ("", None),
        ("spacings: 0.5 1 2\n", (0.5, 1)),
        ('spacings: 0.5 1 2\nunits: "cm" "cm" "cm"\n', None),
        (lps, (0.5, 1)),
        (lps + 'space units: "mm" "mm" "mm"\n', (0.5, 1)),
        (lps + 'space units: "um" "um" "um"\n', None),
    ):
        (tmp_path / "a.nrrd").write_bytes((head + lines + "\n").encode() + VOXELS.tobytes(order="F"))
        assert spacing(tmp_path / "a.nrrd", square=False) == expected
