"""Tests of the pixel spacing of images: in mm only where the file has a length in the patient."""

from __future__ import annotations

from fractions import Fraction

import av
import nibabel
import numpy as np
import pytest
from medical_files import pydicom_file, write_dicom, write_nifti, write_png
from PIL import Image
from pydicom.dataset import Dataset

from mllm.dataset.phantoms.writers import write_mhd
from mllm.dataset.readers import notices, read_images
from mllm.dataset.readers.geometry import spacing_of

PIXELS = np.random.default_rng(0).integers(0, 255, (8, 10)).astype(np.uint8)
VOXELS = np.random.default_rng(0).integers(0, 999, (4, 6, 5)).astype(np.int16)


@pytest.fixture(autouse=True)
def nothing_noticed(monkeypatch):
    monkeypatch.setattr(notices, "_noticed", set())
    monkeypatch.setattr(notices, "_counts", notices.Counter())


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


def ultrasound_regions(*sides, box=(0, 0, 9, 7), units=(3, 3), form=1):
    """Return regions of an ultrasound image whose pixels have these sides in cm, across and down."""
    regions = []
    for across, down in sides:
        region = Dataset()
        region.RegionSpatialFormat, region.RegionDataType = form, 1
        region.RegionLocationMinX0, region.RegionLocationMinY0 = box[:2]
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = box[2:]
        region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = units
        region.PhysicalDeltaX, region.PhysicalDeltaY = across, down
        regions.append(region)
    return regions


def read_ultrasound(path, regions, **tags):
    (image,) = read_images(write_dicom(path, PIXELS, SequenceOfUltrasoundRegions=regions, **tags))
    return image.size, spacing_of(image)


def test_pixels_of_an_ultrasound_image_are_those_of_its_regions(tmp_path, caplog):
    """Eight rows of 0.6 mm and ten columns of 0.3 mm are 16 rows and 10 columns of 0.3 mm."""
    path, wide = tmp_path / "a.dcm", ultrasound_regions((0.03, 0.06), (0.03, 0.06))
    spectrum = ultrasound_regions((0.01, 0.5), units=(4, 7), form=3)
    size, sides = read_ultrasound(path, wide + spectrum)
    assert size == (10, 16) and sides == pytest.approx((0.3, 0.3))
    assert f"{path} has pixels that are not square and is resampled from 10 x 8 to 10 x 16" in caplog.text
    # Increments may be negative; one ratio of two scales is no length.
    assert read_ultrasound(path, ultrasound_regions((0.06, -0.03)))[0] == (20, 8)
    assert read_ultrasound(path, ultrasound_regions((0.03, 0.06), (0.04, 0.08))) == ((10, 16), None)
    assert read_ultrasound(path, wide, PixelSpacing=[0.5, 0.5]) == ((10, 8), (0.5, 0.5))
    assert read_ultrasound(path, wide, PixelAspectRatio=[1, 1])[0] == (10, 16)
    assert read_ultrasound(path, spectrum) == ((10, 8), None)


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        (ultrasound_regions((0.03, 0.06), (0.03, 0.03)), "regions whose pixels have different forms"),
        (ultrasound_regions((0.03, 0.06), box=(0, 0, 20, 16)), "region that is not within the image, which was prob"),
        (ultrasound_regions((0.03, 0.0)), "region with pixels of an impossible size"),
        (ultrasound_regions((0.03, float("nan"))), "region with pixels of an impossible size"),
    ],
)
def test_doubtful_regions_of_an_ultrasound_image_are_reported(tmp_path, caplog, regions, reason):
    for _ in range(2):
        assert read_ultrasound(tmp_path / "a.dcm", regions) == ((10, 8), None)
    assert [message.count(reason) for message in caplog.messages if "may have text" not in message] == [1]
    assert caplog.text.count(f"{tmp_path / 'a.dcm'} has") == 1


def test_real_ultrasound_images_that_were_resized_have_no_spacing(caplog):
    """The regions of these files of pydicom end at 595 x 414 in an image of 320 x 240, and at 518 of 350 rows."""
    for name in ("examples_ybr_color.dcm", "examples_palette.dcm"):
        path = pydicom_file(name)
        (image,) = read_images(path)
        assert spacing_of(image) is None
        assert f"{path} has an ultrasound region that is not within the image" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "bmp"])
def test_images_with_two_resolutions_are_reported_once_and_kept(tmp_path, caplog, suffix):
    image, path = Image.fromarray(PIXELS), tmp_path / f"a.{suffix}"
    for dpi, count in (((96, 96), 0), ((72, 72.5), 0), ((0, 72), 0), ((98, 204), 1), ((98, 204), 1)):
        image.save(path, dpi=dpi)
        (read,) = read_images(path)
        assert read.size == (10, 8)
        expected = f"{path} states that its pixels are not square (width : height = 2.08)"
        assert caplog.text.count(expected) == len(caplog.messages) == count


@pytest.mark.parametrize(("ratio", "count"), [((16, 11), 1), ((1, 1), 0)])
def test_a_video_with_pixels_that_are_not_square_is_reported_and_kept(tmp_path, caplog, ratio, count):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*ratio)
        for frame in (av.VideoFrame.from_ndarray(np.full((32, 48), 90, np.uint8), format="gray"), None):
            container.mux(stream.encode(frame))
    (image,) = read_images(tmp_path / "a.mp4")
    assert image.size == (48, 32)
    expected = f"{tmp_path / 'a.mp4'} states that its pixels are not square (width : height = 1.45)"
    assert caplog.text.count(expected) == len([text for text in caplog.messages if "constant" not in text]) == count
