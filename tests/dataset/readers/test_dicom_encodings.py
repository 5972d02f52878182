"""Tests of encodings, colors, frames and damaged DICOM files; gray values are in test_dicom.py."""

from __future__ import annotations

import gzip
import traceback
from pathlib import Path

import numpy as np
import pydicom
import pytest
from medical_files import pydicom_file, read_gray, write_dicom
from pydicom.pixels.decoders import JPEGExtended12BitDecoder

from mllm.dataset.readers import read_images
from mllm.errors import ConfigError, DataError

GRADIENT = np.arange(-1100, 1100, 2, dtype=np.int16)[:1024].reshape(32, 32)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless", "JPEG2000Lossless"])
def test_lossless_encodings_give_the_same_pixels(tmp_path, syntax):
    plain = write_dicom(tmp_path / "a.dcm", GRADIENT)
    assert np.array_equal(read_gray(write_dicom(tmp_path / "b.dcm", GRADIENT, syntax=syntax)), read_gray(plain))
    color = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)
    pictures = read_images(write_dicom(tmp_path / "c.dcm", color, syntax=syntax), frames="all")
    assert np.array_equal(np.stack(pictures), color)


def test_jpeg_color_is_converted_exactly_once(tmp_path):
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[0:255:32j, 0:255:32j], 128), axis=-1).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", np.stack([smooth, smooth[::-1]]), syntax="JPEGBaseline8Bit")
    assert pydicom.dcmread(path).PhotometricInterpretation == "YBR_FULL_422"
    first, second = (np.asarray(picture).astype(int) for picture in read_images(path, frames="all"))
    assert np.abs(first - smooth).max() < 12
    assert np.abs(second - smooth[::-1]).max() < 12


def test_native_ybr_by_the_formula_of_the_standard(tmp_path):
    # PS3.3 C.7.6.3.1.2, the inverse of the matrix of YBR_FULL.
    ybr = np.random.default_rng(1).integers(16, 235, (3, 20, 20, 3), dtype=np.uint8)
    path = write_dicom(tmp_path / "a.dcm", ybr, photometric="YBR_FULL")
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    expected = np.clip((ybr - [0, 128, 128]) @ np.linalg.inv(matrix).T, 0, 255)
    assert np.abs(np.stack(read_images(path, frames="all")) - expected).max() <= 1


@pytest.mark.parametrize("colors", ["YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "ARGB", "HSV", "CMYK"])
def test_colors_that_would_be_taken_for_rgb_are_refused(tmp_path, colors):
    path = write_dicom(tmp_path / "a.dcm", np.full((32, 32, 3), 90, np.uint8), photometric=colors)
    with pytest.raises(DataError, match=rf"a.dcm has pixels in {colors} \(Explicit VR .*save it as RGB"):
        read_images(path)


@pytest.mark.parametrize("element, kind", [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_pixels_of_floating_point_numbers(tmp_path, element, kind):
    values = np.linspace(-1, 1, 256).reshape(16, 16).astype(kind)
    values[0, 0] = np.nan
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", np.zeros((16, 16), np.uint16)))
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        del dataset[name]
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    setattr(dataset, element, values.tobytes())
    dataset.save_as(tmp_path / "a.dcm")
    low = np.nanmin(values)
    expected = np.rint(np.nan_to_num((values - low) / (1 - low)) * 255)
    assert np.array_equal(read_gray(tmp_path / "a.dcm"), expected)
    expected = np.rint(np.nan_to_num(values.astype(float).clip(0)) * 255)
    assert np.array_equal(read_gray(tmp_path / "a.dcm", window=(0.5, 1)), expected)


def test_a_file_compressed_by_gzip(tmp_path, monkeypatch):
    path = tmp_path / "a.dcm.gz"
    data = gzip.compress(Path(pydicom_file("MR_small.dcm")).read_bytes())
    path.write_bytes(data)
    assert np.array_equal(read_gray(path), read_gray(pydicom_file("MR_small.dcm")))
    path.write_bytes(gzip.compress(Path(pydicom_file("MR_small_jpeg_ls_lossless.dcm")).read_bytes()))
    assert np.array_equal(read_gray(path), read_gray(pydicom_file("MR_small_jpeg_ls_lossless.dcm")))
    path.write_bytes(data[:3000])
    with pytest.raises(DataError, match=r"a.dcm.gz is truncated or damaged: it cannot be decompressed"):
        read_images(path)
    path.write_bytes(data)
    monkeypatch.setattr("mllm.dataset.readers.dicom_frames._MAX_INFLATED", 1 << 12)
    with pytest.raises(DataError, match=r"a.dcm.gz decompresses to more than 4,096 bytes"):
        read_images(path)


def test_every_frame_of_native_subsampled_ybr_is_converted(tmp_path):
    dataset = pydicom.dcmread(pydicom_file("SC_ybr_full_422_uncompressed.dcm"))
    dataset.PixelData = dataset.PixelData * 2
    dataset.NumberOfFrames = 2
    dataset.save_as(tmp_path / "two.dcm")
    first, second = (np.asarray(picture) for picture in read_images(tmp_path / "two.dcm", frames="all"))
    assert np.array_equal(first, second)
    assert np.array_equal(first, np.asarray(read_images(pydicom_file("SC_ybr_full_422_uncompressed.dcm"))[0]))


@pytest.mark.parametrize(
    "name",
    [
        *("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_+eb+cy+n2.dcm"),
        *("SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm"),
        *("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_gdcm_KY.dcm"),
        *("SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm", "SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm"),
        *("SC_rgb_rle_32bit.dcm", "SC_ybr_full_422_uncompressed.dcm"),
    ],
)
def test_one_image_in_sixteen_encodings(name):
    # All files show the same bars. Pixels at the middle of each bar, from the top: red, green, blue, ... white.
    picture = np.asarray(read_images(pydicom_file(name))[0]).astype(int)
    expected = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255), (0, 0, 0)]
    expected += [(64, 64, 64), (192, 192, 192), (255, 255, 255)]
    assert np.abs(picture[5::10, 50] - expected).max() <= 6


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"])
@pytest.mark.parametrize("removed", ["preamble", "preamble and meta", "meta"])
def test_files_without_a_preamble_or_without_a_transfer_syntax_are_read(tmp_path, name, removed):
    dataset = pydicom.dcmread(pydicom_file(name))
    implicit, little = dataset.original_encoding
    path = tmp_path / ("IM0001" if little else "IM0001.dcm")
    if removed == "preamble":
        path.write_bytes(Path(pydicom_file(name)).read_bytes()[132:])
    else:
        del dataset.file_meta
        dataset.preamble = None if removed == "preamble and meta" else dataset.preamble
        dataset.save_as(path, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    assert np.array_equal(read_gray(path), read_gray(pydicom_file(name)))


def test_a_deflated_file_that_decompresses_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr("mllm.dataset.readers.dicom_frames._MAX_INFLATED", 1 << 16)
    with pytest.raises(DataError, match=r"image_dfl.dcm decompresses to more than"):
        read_images(pydicom_file("image_dfl.dcm"))


def test_palette_by_hand(tmp_path):
    pixels = np.array([[0, 1], [2, 2]], np.uint8)
    tags = {}
    for color, table in (("Red", [255, 0, 10]), ("Green", [0, 255, 20]), ("Blue", [0, 0, 30])):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{color}PaletteColorLookupTableData"] = np.array([value * 257 for value in table], "<u2").tobytes()
    path = write_dicom(tmp_path / "a.dcm", pixels, photometric="PALETTE COLOR", **tags)
    actual = np.asarray(read_images(path)[0])
    assert actual.tolist() == [[[255, 0, 0], [0, 255, 0]], [[10, 20, 30], [10, 20, 30]]]


def test_frames_of_a_cine_are_in_the_order_of_the_option():
    path = pydicom_file("examples_ybr_color.dcm")
    everything = [np.asarray(picture) for picture in read_images(path, frames="all")]
    assert len(everything) == 30
    assert everything[0].shape == (240, 320, 3)
    assert np.array_equal(np.asarray(read_images(path)[0]), everything[0])
    picked = read_images(path, frames=[29, 3, 15])
    assert [np.array_equal(picture, everything[at]) for picture, at in zip(picked, (29, 3, 15), strict=True)] == [
        True
    ] * 3
    assert not np.array_equal(everything[3], everything[15])
    assert np.array_equal(np.asarray(read_images(path, frames="middle")[0]), everything[15])
    with pytest.raises(DataError, match=r"examples_ybr_color.dcm has no frame 30: it has 30, from 0 to 29"):
        read_images(path, frames=30)


def test_window_on_color_is_refused():
    with pytest.raises(DataError, match="is in color, but a window needs a gray image"):
        read_images(pydicom_file("examples_ybr_color.dcm"), window=(40, 400))


@pytest.mark.parametrize(
    "name, message",
    [
        ("waveform_ecg.dcm", r"has no pixels \(it is a waveform .*: SOP class 12-lead ECG Waveform Storage\)"),
        ("reportsi.dcm", r"has no pixels \(it is .* a report"),
        ("rtplan.dcm", r"has no pixels \(it is .* a plan"),
        ("MR_truncated.dcm", r"cannot be decoded: its pixels \(Explicit VR Little Endian\) are truncated"),
        ("badVR.dcm", r"cannot be decoded: its header or its pixels are damaged"),
        ("no_meta.dcm", r"is not a DICOM file: it has neither the DICOM preamble nor elements of an image"),
    ],
)
def test_files_that_cannot_be_read(name, message):
    with pytest.raises(DataError, match=rf"{name} {message}"):
        read_images(pydicom_file(name))


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_the_message_about_a_jpeg_of_12_bits_names_the_package_that_decodes_it(name):
    if "pylibjpeg" in JPEGExtended12BitDecoder.available_plugins:
        pytest.skip("pylibjpeg-libjpeg is installed, which decodes these files")
    with pytest.raises(ConfigError, match=rf"{name} has JPEG pixels of 12 bits .* pip install pylibjpeg-libjpeg"):
        read_images(pydicom_file(name))


def test_a_truncated_compressed_file(tmp_path):
    for syntax in ("RLELossless", "JPEGLSLossless", "JPEG2000Lossless", "JPEGBaseline8Bit"):
        pixels = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
        path = write_dicom(tmp_path / f"{syntax}.dcm", pixels, syntax=syntax)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(DataError, match=rf"{syntax}.dcm is truncated or damaged"):
            read_images(path)


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"]
)
def test_damaged_streams_give_an_error_message_or_an_image(tmp_path, name):
    whole = Path(pydicom_file(name)).read_bytes()
    begin = whole.index(b"\xe0\x7f\x10\x00") + 36
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(50):
        damaged = bytearray(whole)
        for at in rng.integers(begin, len(whole), 6):
            damaged[at] = rng.integers(256)
        if rng.random() < 0.3:
            at = int(rng.integers(begin, len(whole) - 8))
            damaged[at:-8] = bytes(len(whole) - 8 - at)
        (tmp_path / "a.dcm").write_bytes(damaged)
        try:
            assert read_images(tmp_path / "a.dcm")[0].mode == "RGB"
        except DataError:
            refused += 1
    assert refused > 5


def test_a_missing_decoder_names_the_extra(monkeypatch):
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    with pytest.raises(ConfigError, match=r"needs a decoder for JPEG-LS .*pip install -e \.\[dicom\]"):
        read_images(pydicom_file("MR_small_jpeg_ls_lossless.dcm"))


def test_messages_and_warnings_contain_no_identifier(tmp_path, recwarn, caplog):
    secret = "Geheimnis^Anna" * 8
    tags = {
        "PatientName": secret,
        "PatientID": secret,
        "StudyDescription": secret,
        "PatientBirthDate": "19700101",
    }
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, **tags)
    picture = read_images(path)[0]
    assert picture.info == {}
    recwarn.clear()  # the writer's own warnings
    caplog.clear()
    whole = path.read_bytes()
    attempts = [whole[:-300], whole.replace(b"MONOCHROME2 ", secret[:12].encode()), whole[: len(whole) // 3]]
    for number, contents in enumerate(attempts):
        broken = tmp_path / f"broken{number}.dcm"
        broken.write_bytes(contents)
        try:
            read_images(broken)
        except DataError as error:
            assert "Geheimnis" not in "".join(traceback.format_exception(error))
    assert not [warning for warning in recwarn if "Geheimnis" in str(warning.message)]
    assert "Geheimnis" not in caplog.text
