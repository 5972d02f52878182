"""Headers with impossible values: they are ignored with a warning that names the file, and never change the picture."""

from __future__ import annotations

import gzip
import struct

import nibabel
import numpy as np
import pydicom
import pytest
from medical_files import read_gray, write_dicom, write_nifti, write_png
from PIL import Image
from pydicom.dataset import Dataset

from mllm.dataset.readers import read_images
from mllm.errors import DataError

GRADIENT = np.arange(-1100, 1100, 2, dtype=np.int16)[:1024].reshape(32, 32)
FULL = np.rint((GRADIENT - GRADIENT.min()) / (GRADIENT.max() - GRADIENT.min()) * 255)


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 0, "WindowWidth": 0},
        {"WindowCenter": 0, "WindowWidth": -400},
        {"WindowCenter": float("nan"), "WindowWidth": 400},
        {"WindowCenter": 0, "WindowWidth": 1e-9},
        {"WindowCenter": 0, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"},
        {"RescaleSlope": 0, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400},
        {"RescaleSlope": 1, "RescaleIntercept": float("inf"), "WindowCenter": 40, "WindowWidth": 400},
        {"PixelSpacing": [0, 1]},
        {"PixelSpacing": [1, 1000]},
        {"PixelAspectRatio": [0, 0]},
    ],
)
def test_impossible_values_are_ignored_with_one_warning(tmp_path, caplog, tags):
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, **tags)
    for _ in range(2):
        assert np.array_equal(read_gray(path), FULL)
    (message,) = caplog.messages
    assert message.startswith(f"{path} has ")
    assert message.endswith("ignored")


def voi_lut(entries, bits, data=None):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), 0, bits])
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes() if data is None else data)
    return {"VOILUTSequence": [item]}


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_voi_lut_with_a_wrong_number_of_bits_is_scaled_to_its_largest_entry(tmp_path, caplog, bits):
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    path = write_dicom(tmp_path / "a.dcm", pixels, **voi_lut(list(range(1024)), bits))
    assert np.array_equal(read_gray(path), np.rint(pixels / 1023 * 255))
    assert [f"VOI LUT of {bits} bits" in message for message in caplog.messages] == [True]


def test_packed_entries_of_8_bits(tmp_path, caplog):
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = write_dicom(tmp_path / "a.dcm", pixels, **voi_lut([0] * 256, 8, bytes(range(255, -1, -1))))
    assert np.array_equal(read_gray(path), 255 - pixels)
    assert not caplog.messages


def test_a_voi_lut_shorter_than_its_stated_length_is_ignored(tmp_path, caplog):
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, **voi_lut([0] * 1024, 16, bytes(100)))
    assert np.array_equal(read_gray(path), FULL)
    assert "shorter than its descriptor" in caplog.text


@pytest.mark.parametrize("missing", ["LUTDescriptor", "LUTData"])
def test_a_voi_lut_without_a_part_is_ignored(tmp_path, caplog, missing):
    tags = voi_lut(list(range(1024)), 12)
    del tags["VOILUTSequence"][0][missing]
    assert np.array_equal(read_gray(write_dicom(tmp_path / "a.dcm", GRADIENT, **tags)), FULL)
    assert "a VOI LUT that is constant, incomplete" in caplog.text


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_modality_lut_of_any_number_of_bits(tmp_path, caplog, bits):
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    entries = [number // 4 for number in range(1024)]
    tags = {"ModalityLUTSequence": voi_lut(entries, bits)["VOILUTSequence"]}
    path = write_dicom(tmp_path / "a.dcm", pixels, **tags, WindowCenter=128, WindowWidth=256)
    assert np.array_equal(read_gray(path), pixels // 4)
    assert not caplog.messages


def test_an_impossible_modality_lut_is_ignored_with_its_window(tmp_path, caplog):
    tags = {"ModalityLUTSequence": voi_lut([0] * 1024, 16)["VOILUTSequence"], "WindowCenter": 40, "WindowWidth": 400}
    assert np.array_equal(read_gray(write_dicom(tmp_path / "a.dcm", GRADIENT, **tags)), FULL)
    (message,) = caplog.messages
    assert "a modality LUT that is constant" in message
    assert message.endswith("its rescale and window are ignored")


def test_a_blank_window_is_no_window(tmp_path, caplog):
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, WindowCenter="40", WindowWidth="400")
    path.write_bytes(path.read_bytes().replace(b"\x28\0\x51\x10DS\x04\x00400 ", b"\x28\0\x51\x10DS\x04\x00    "))
    assert np.array_equal(read_gray(path), FULL)
    assert not caplog.messages


def test_a_window_of_real_numbers_is_exact(tmp_path):
    # A parametric map from 0 to 1 with the window 0.5/1.0 (PS3.3 C.11.2.1.3.2: LINEAR_EXACT shows 0 to 1).
    pixels = np.linspace(0, 1, 1024).reshape(32, 32)
    stored = np.rint(pixels * 1000).astype(np.uint16)
    tags = {"RescaleSlope": 0.001, "RescaleIntercept": 0, "WindowCenter": 0.5, "WindowWidth": 1.0}
    scaled = read_gray(write_dicom(tmp_path / "a.dcm", stored, **tags))
    assert np.abs(scaled - stored / 1000 * 255).max() <= 0.51
    narrow = {**tags, "RescaleSlope": 0.0001, "WindowCenter": 0.05, "WindowWidth": 0.1}
    assert np.abs(read_gray(write_dicom(tmp_path / "b.dcm", stored, **narrow)).astype(int) - scaled).max() <= 1


@pytest.mark.parametrize("kind", ["nii", "dcm", "tif"])
def test_one_extreme_value_does_not_darken_the_other_pixels(tmp_path, caplog, kind):
    values = np.random.default_rng(0).normal(500, 100, (64, 64)).clip(0, 1000)
    outlier = values.copy()
    outlier[3, 5] = 1e7
    if kind == "nii":
        path = write_nifti(tmp_path / "a.nii", outlier[..., None].astype(np.float32))
    elif kind == "tif":
        path = tmp_path / "a.tif"
        Image.fromarray(outlier.astype(np.float32)).save(path)
    else:
        path = write_dicom(tmp_path / "a.dcm", np.rint(np.minimum(outlier / 10, 30000)).astype(np.uint16))
    assert read_gray(path).std() > 30
    assert "has values from" in caplog.text
    assert str(path) in caplog.text


@pytest.mark.parametrize("extreme", [20_000, -20_000])
def test_a_picture_of_few_grays_is_reported(tmp_path, caplog, extreme):
    values = np.random.default_rng(0).uniform(0, 1000, (64, 64, 1)).astype(np.float32)
    values[3, 5] = extreme
    picture = read_gray(write_nifti(tmp_path / "a.nii", values))
    assert len(np.unique(picture)) < 20
    assert "these get 12 of 256 grays" in caplog.text or "these get 13 of 256 grays" in caplog.text


@pytest.mark.parametrize("limits", [(0, 1e9), (2000, 3000), (500, 501)])
def test_a_display_range_that_shows_one_gray_is_ignored(tmp_path, caplog, limits):
    values = np.random.default_rng(0).uniform(0, 1000, (64, 64, 1)).astype(np.float32)
    expected = read_gray(write_nifti(tmp_path / "a.nii", values))
    path = write_nifti(tmp_path / "b.nii", values)
    contents = bytearray(path.read_bytes())
    contents[124:132] = struct.pack("<ff", limits[1], limits[0])  # cal_max, cal_min
    path.write_bytes(contents)
    assert np.array_equal(read_gray(path), expected)
    assert "display range" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vox_offset", 0, "is damaged: its voxels begin within its header"),
        (
            "dim",
            [3, 16, 32, 2, 1, 1, 1, 1],
            "has 4,096 bytes of voxels, and its header (dim, datatype) describes 2,048",
        ),
        ("datatype", 2, "has 4,096 bytes of voxels, and its header (dim, datatype) describes 2,048"),
        ("sform_code", 0, "states no orientation (qform and sform): right and left may be exchanged"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_header_that_contradicts_its_file(tmp_path, caplog, suffix, field, value, message):
    path = write_nifti(tmp_path / "a.nii", np.stack([GRADIENT, GRADIENT], axis=2))
    header = nibabel.Nifti1Header(path.read_bytes()[:348], check=False)
    header[field] = value
    content = header.binaryblock + path.read_bytes()[348:]
    path = tmp_path / f"b{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    try:
        read_images(path)
    except DataError as error:
        assert str(error).startswith(f"{path} {message}")
    else:
        assert [entry.startswith(f"{path} {message}") for entry in caplog.messages] == [True]


def test_a_picture_that_is_empty_but_for_a_spread_object_is_not_reported(tmp_path, caplog):
    values = np.zeros((200, 200), np.uint16)
    values[:8] = np.random.default_rng(0).integers(0, 1000, (8, 200))  # 4 % of the pixels
    read_gray(write_dicom(tmp_path / "a.dcm", values))
    assert not caplog.messages


def test_a_picture_of_which_nearly_all_shares_few_grays_is_reported(tmp_path, caplog):
    values = np.random.default_rng(0).integers(1000, 2300, (64, 64)).astype(np.float32)
    values[::8, ::4] = 1e6
    path = write_nifti(tmp_path / "a.nii", values[..., None])
    read_images(path)
    assert [entry.startswith(f"{path} has values from ") for entry in caplog.messages] == [True]
    assert "to 1e+06, of which 95 % get 1 of 256 grays" in caplog.text


def test_a_sparse_map_is_shown_in_its_full_range(tmp_path, caplog):
    mask = np.zeros((64, 64, 1), np.float32)
    mask[10, 10] = 1
    assert read_gray(write_nifti(tmp_path / "a.nii", mask)).max() == 255
    assert "has values from" not in caplog.text


def test_color_values_above_their_bits_are_white(tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, BitsStored=7)
    expected = np.rint(np.minimum(pixels, 127) * (255 / 127))
    assert np.array_equal(np.asarray(read_images(path)[0]), expected)
    assert "has values above those of its 7 bits" in caplog.text


@pytest.mark.parametrize(("offset", "bits"), [(2000, 10), (2000, 8), (0, 9)])
def test_gray_values_above_their_bits_do_not_wrap(tmp_path, caplog, offset, bits):
    pixels = GRADIENT + np.int16(offset)
    path = write_dicom(tmp_path / "a.dcm", pixels if pixels.min() < 0 else pixels.astype(np.uint16), BitsStored=bits)
    assert np.array_equal(read_gray(path), FULL)
    assert caplog.messages == [f"{path} has values above those of its {bits} bits (BitsStored), which is ignored"]


def test_unused_bits_are_a_sign_an_overlay_or_padding(tmp_path, caplog):
    low = (GRADIENT.astype(np.uint16) & 0x0FFF).view(np.int16)
    assert np.array_equal(read_gray(write_dicom(tmp_path / "sign.dcm", low, BitsStored=12)), FULL)
    values = (GRADIENT + 1100).astype(np.uint16)
    overlay = values | np.uint16(1 << 13) * (np.arange(1024).reshape(32, 32) % 3 == 0)
    path = write_dicom(tmp_path / "overlay.dcm", overlay.astype(np.uint16), BitsStored=12)
    header = pydicom.dcmread(path)
    header.add_new(0x60000102, "US", 13)
    header.save_as(path)
    assert np.array_equal(read_gray(path), FULL)
    padded = values.copy()
    padded[:4] = 63536
    tags = dict(BitsStored=12, PixelPaddingValue=63536)
    picture = read_gray(write_dicom(tmp_path / "padding.dcm", padded, **tags))
    assert not picture[:4].any() and len(np.unique(picture)) > 200
    assert not caplog.messages


@pytest.mark.parametrize("width", [1, 2])
def test_a_window_that_is_a_threshold_is_reported(tmp_path, caplog, width):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = write_dicom(tmp_path / "a.dcm", values, WindowCenter=2048, WindowWidth=width)
    assert set(np.unique(read_gray(path))) <= {0, 128, 255}
    (message,) = caplog.messages
    assert message.startswith(f"{path} has WindowWidth {width}, with which nearly all pixels are black or white: set")
    mask = write_dicom(tmp_path / "b.dcm", (values > 2000).astype(np.uint8), WindowCenter=1, WindowWidth=1)
    assert read_gray(mask).max() == 255 and len(caplog.messages) == 1


def test_a_blank_rescale_is_no_rescale(tmp_path, caplog):
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, RescaleSlope="", RescaleIntercept="")
    assert np.array_equal(read_gray(path), FULL)
    assert not caplog.messages


@pytest.mark.parametrize(("slope", "intercept", "present"), [("", -1024, "RescaleIntercept"), (4, "", "RescaleSlope")])
def test_half_a_rescale_is_reported_and_the_window_of_its_unit_is_not_used(tmp_path, caplog, slope, intercept, present):
    tags = dict(RescaleSlope=slope, RescaleIntercept=intercept, WindowCenter=500, WindowWidth=100)
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, **tags)
    assert np.array_equal(read_gray(path), FULL)
    start = f"{path} has {present} alone, without the other part of a rescale: its rescale and window are ignored"
    assert caplog.messages == [start]


def test_more_pixels_than_the_header_describes_are_reported(tmp_path, caplog):
    path = write_dicom(tmp_path / "a.dcm", np.concatenate([GRADIENT, GRADIENT]))
    header = pydicom.dcmread(path)
    header.Rows = 32
    header.save_as(path)
    assert np.array_equal(read_gray(path), FULL)
    start = f"{path} has 4,096 bytes of pixels, and its header (rows, columns, frames) describes 2,048: "
    assert [message.startswith(start) for message in caplog.messages] == [True]


def test_a_nearly_constant_picture_is_reported_once_with_its_file(tmp_path, caplog):
    pixels = np.full((64, 64), 40, np.uint8)
    pixels[0, 0] = 255
    path = write_png(tmp_path / "a.png", pixels)
    for _ in range(2):
        read_images(path)
    read_images(write_png(tmp_path / "b.png", np.arange(4096).reshape(64, 64).astype(np.uint8)))
    assert caplog.messages == [f"{path} is nearly constant: 99.9% of its pixels are about (40, 40, 40)"]


@pytest.mark.parametrize("name", ["PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"])
def test_pixels_that_are_not_square_are_resampled(tmp_path, name, caplog):
    # The vertical side is named first (PS3.3 C.7.6.3.1.7): rows are 4/3 as far apart as columns.
    pixels = np.tile(np.linspace(0, 255, 120)[:, None], (1, 256)).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, **{name: [4, 3]})
    picture = read_gray(path)
    assert picture.shape == (160, 256)
    assert (
        np.abs(picture[:, 7] - np.interp((np.arange(160) + 0.5) * 0.75 - 0.5, np.arange(120), pixels[:, 7])).max() < 2
    )
    assert np.array_equal(read_gray(path, square=False), pixels)
    assert f"{path} has pixels that are not square and is resampled from" in caplog.text


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, Rows=65535, Columns=65535)
    with pytest.raises(DataError, match=r"a.dcm has more than 178,956,970 pixels"):
        read_images(path)
