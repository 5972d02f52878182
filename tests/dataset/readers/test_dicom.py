"""Tests of gray values of DICOM files, compared with pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from medical_files import pydicom_file, read_gray, write_dicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from mllm.dataset.readers import read_images
from mllm.errors import DataError

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "dicom"
GRADIENT = np.arange(-1100, 1100, 2, dtype=np.int16)[:1024].reshape(32, 32)
HOUNSFIELD = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}


def to_8_bits(values, low, high):
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def output_range(dataset):
    """Return the range onto which the windowing of pydicom maps (PS3.3 C.11.2.1.2)."""
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1], float)
    return ends * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))


@pytest.mark.parametrize("name", ["MR_small.dcm", "examples_overlay.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_the_window_of_the_file_against_pydicom(name):
    dataset = pydicom.dcmread(pydicom_file(name))
    windowed = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    assert np.array_equal(read_gray(pydicom_file(name)), to_8_bits(windowed, *output_range(dataset)))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [1, 2, 350])
def test_every_voi_function_against_pydicom(tmp_path, function, width):
    tags = {"WindowCenter": 37, "WindowWidth": width, "VOILUTFunction": function}
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, RescaleSlope=2, RescaleIntercept=-5, **tags)
    dataset = pydicom.dcmread(path)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        windowed = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
        assert np.abs(read_gray(path) - to_8_bits(windowed, *output_range(dataset))).max() <= (function == "SIGMOID")


@pytest.mark.parametrize("name, low, high", [("lung", -1350, 150), ("brain", 0, 80), ("bone", -500, 1300)])
def test_named_windows_by_hand(tmp_path, name, low, high):
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, **HOUNSFIELD)
    assert np.array_equal(read_gray(path, window=name), to_8_bits(GRADIENT, low, high))
    shifted = write_dicom(
        tmp_path / "b.dcm", (GRADIENT + 1024).astype(np.uint16), Modality="CT", RescaleSlope=1, RescaleIntercept=-1024
    )
    pixels = (GRADIENT + 1024).astype(np.uint16).astype(float) - 1024
    assert np.array_equal(read_gray(shifted, window=name), to_8_bits(pixels, low, high))


def test_a_window_by_numbers_is_exact_and_replaces_that_of_the_file(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, WindowCenter=0, WindowWidth=10)
    assert np.array_equal(read_gray(path, window=(40, 400)), to_8_bits(GRADIENT, -160, 240))


def test_a_named_window_is_for_ct_in_hounsfield_units(tmp_path):
    magnetic = write_dicom(tmp_path / "mr.dcm", GRADIENT, Modality="MR", RescaleSlope=1, RescaleIntercept=0)
    unscaled = write_dicom(tmp_path / "ct.dcm", GRADIENT, Modality="CT")
    for path in (magnetic, unscaled):
        with pytest.raises(
            DataError, match=rf"{path.name} is not a CT in Hounsfield units, which window='lung' requires"
        ):
            read_images(path, window="lung")


def test_without_a_window_the_full_range(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GRADIENT)
    assert np.array_equal(read_gray(path), to_8_bits(GRADIENT, GRADIENT.min(), GRADIENT.max()))


def test_monochrome1_is_inverted(tmp_path):
    tags = {"WindowCenter": 0, "WindowWidth": 1000}
    plain = read_gray(write_dicom(tmp_path / "a.dcm", GRADIENT, **tags))
    turned = read_gray(write_dicom(tmp_path / "b.dcm", GRADIENT, photometric="MONOCHROME1", **tags))
    assert np.abs(255 - plain.astype(int) - turned).max() <= 1
    assert turned[0, 0] == 255
    assert turned[-1, -1] == 0


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_out_of_the_range(tmp_path, photometric):
    pixels = GRADIENT.copy()
    pixels[:4] = -2000
    tags = {"PixelPaddingValue": -2000, "RescaleSlope": 1, "RescaleIntercept": -1024}
    picture = read_gray(write_dicom(tmp_path / "a.dcm", pixels, photometric=photometric, **tags))
    assert not picture[:4].any()
    inside = to_8_bits(pixels[4:], pixels[4:].min(), pixels[4:].max())
    expected = inside if photometric == "MONOCHROME2" else 255 - inside
    assert np.abs(picture[4:] - expected).max() <= 1


def test_a_range_of_padding(tmp_path):
    tags = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": 0}
    picture = read_gray(write_dicom(tmp_path / "a.dcm", GRADIENT, **tags))
    assert not picture[GRADIENT <= 0].any()
    assert picture[GRADIENT > 0].min() == 0
    assert picture[-1, -1] == 255


def lut(data, first, bits, vr):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data), first, bits])
    item.add_new("LUTData", vr, np.array(data, "<u2").tobytes() if vr == "OW" else data)
    return [item]


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_modality_lut_and_voi_lut_against_pydicom(tmp_path, vr):
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    modality = lut([(number * 3) % 4096 for number in range(1024)], 0, 16, vr)
    modality[0].ModalityLUTType = "US"
    voi = lut([int(round(4095 * (number / 3071) ** 2)) for number in range(3072)], 100, 12, vr)
    path = write_dicom(tmp_path / "a.dcm", pixels, ModalityLUTSequence=modality, VOILUTSequence=voi, BitsStored=12)
    dataset = pydicom.dcmread(path)
    expected = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    assert np.array_equal(read_gray(path), to_8_bits(expected.astype(float), 0, 4095))


def test_a_voi_lut_of_8_bits_with_more_than_256_entries(tmp_path):
    # pydicom's own function wraps the index at 256 here, so the expected values are from the table by hand.
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    table = [number // 4 for number in range(1024)]
    path = write_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=lut(table, 0, 8, "US"), BitsStored=12)
    assert np.array_equal(read_gray(path), pixels // 4)


def test_enhanced_multi_frame_transforms_are_per_frame(tmp_path):
    def group(center, slope):
        outer, window, rescale = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, 400, "LINEAR_EXACT"
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, -10, "HU"
        outer.FrameVOILUTSequence, outer.PixelValueTransformationSequence = [window], [rescale]
        return outer

    frames = np.stack([GRADIENT, GRADIENT])
    path = write_dicom(
        tmp_path / "a.dcm", frames, Modality="CT", PerFrameFunctionalGroupsSequence=[group(0, 1), group(300, 2)]
    )
    first, second = (np.asarray(picture)[..., 0] for picture in read_images(path, frames="all"))
    assert np.array_equal(first, to_8_bits(GRADIENT - 10.0, -200, 200))
    assert np.array_equal(second, to_8_bits(GRADIENT * 2.0 - 10, 100, 500))
    assert np.array_equal(read_gray(path, frames=1, window="brain"), to_8_bits(GRADIENT * 2.0 - 10, 0, 80))


@pytest.mark.parametrize(
    "name, size, options",
    [
        ("693_J2KR.dcm", (512, 512), {"window": "brain"}),
        ("RG1_J2KI.dcm", (1841, 1955), {}),
        ("color-pl.dcm", (256, 160), {}),
        ("examples_palette.dcm", (800, 350), {}),
    ],
)
def test_real_files(name, size, options):
    if not (DATA / name).exists():
        pytest.skip("the shared data folder is not beside this checkout")
    picture = read_images(DATA / name, **options)[0]
    assert picture.size == size
    assert np.asarray(picture).std() > 20


def test_bones_are_white_on_a_radiograph_stored_as_monochrome1():
    path = DATA / "RG1_J2KI.dcm"
    if not path.exists():
        pytest.skip("the shared data folder is not beside this checkout")
    picture = read_gray(path)
    spine, lung = picture[700:1100, 880:960].mean(), picture[500:800, 350:550].mean()
    assert spine > lung + 20
