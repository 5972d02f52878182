"""Tests of the reader of PNG, JPEG, TIFF, WebP and BMP files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from medical_files import write_png
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file

from mllm.dataset.readers import read_images
from mllm.errors import ConfigError, DataError

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "images"


def pixels(path, **options):
    return np.asarray(read_images(path, **options)[0])


@pytest.fixture
def color():
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".webp"])
def test_lossless_color_is_unchanged(tmp_path, color, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(color).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(pixels(path), color)


def test_jpeg_is_what_pillow_decodes(tmp_path, color):
    path = tmp_path / "a.JPEG"
    Image.fromarray(color).save(path, format="JPEG")
    assert np.array_equal(pixels(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gray_is_scaled_from_its_full_range(tmp_path, suffix):
    values = np.array([[1000, 2000, 30000], [41000, 50000, 51000]], np.uint16)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(values).save(path)
    expected = np.rint((values.astype(float) - 1000) / 50000 * 255)
    actual = pixels(path)
    assert np.array_equal(actual, np.repeat(expected[..., None], 3, axis=2))


def test_16_bit_gray_with_a_window(tmp_path):
    values = np.array([[0, 32768 - 160, 32768 + 40, 32768 + 240, 65535]], np.uint16)
    path = write_png(tmp_path / "deeplesion.png", values)
    assert pixels(path, window=(32768 + 40, 400))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ConfigError, match="Hounsfield"):
        read_images(path, window="lung")


def test_float_and_32_bit_tiff(tmp_path):
    values = np.array([[np.nan, -0.5, 0.0, 1.5]], np.float32)
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert pixels(tmp_path / "f.tif")[0, :, 0].tolist() == [0, 0, 64, 255]
    whole = np.array([[-70000, 0, 70000]], np.int32)
    Image.fromarray(whole).save(tmp_path / "i.tif")
    assert pixels(tmp_path / "i.tif")[0, :, 0].tolist() == [0, 128, 255]


def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path):
    values = np.array([[0, 1000, 4000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "w.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "w.tif") as image:
        assert image.tag_v2[262] == 0
    assert pixels(tmp_path / "w.tif")[0, :, 0].tolist() == [255, 191, 0]


def test_constant_gray_is_black(tmp_path):
    assert not pixels(write_png(tmp_path / "a.png", np.full((4, 4), 7000, np.uint16))).any()


def test_window_on_8_bit_gray_and_not_on_color(tmp_path, color):
    gray = np.array([[0, 50, 100, 150]], np.uint8)
    assert pixels(write_png(tmp_path / "g.png", gray), window=(100, 100))[0, :, 0].tolist() == [0, 0, 128, 255]
    with pytest.raises(ConfigError, match=r"c.png is in color"):
        read_images(write_png(tmp_path / "c.png", color), window=(100, 100))


def test_transparency_is_composited_on_black(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [(200, 100, 50, 255), (200, 100, 50, 128), (200, 100, 50, 0)]
    actual = pixels(write_png(tmp_path / "a.png", rgba))
    assert actual[0, 0].tolist() == [200, 100, 50]
    assert np.abs(actual[0, 1].astype(int) - [100, 50, 25]).max() <= 1
    assert actual[0, 2].tolist() == [0, 0, 0]


def test_gray_with_alpha_palette_and_transparent_palette(tmp_path):
    Image.fromarray(np.array([[[90, 255], [90, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0].tolist() == [[90, 90, 90], [0, 0, 0]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png")[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    palette.save(tmp_path / "pt.png", transparency=1)
    assert pixels(tmp_path / "pt.png")[0].tolist() == [[255, 0, 0], [0, 0, 0]]


def test_bilevel_and_cmyk(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.png")
    assert pixels(tmp_path / "b.png")[0].tolist() == [[255] * 3, [0] * 3]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.tif")
    assert pixels(tmp_path / "c.tif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("deep", [False, True])
def test_exif_orientation_is_applied(tmp_path, deep):
    values = (np.arange(12).reshape(3, 4) * 20).astype(np.uint16 if deep else np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(values, -1)
    actual = pixels(tmp_path / "a.png")[..., 0]
    assert np.array_equal(actual, np.rint((expected / 220) * 255) if deep else expected)


def test_pages_of_a_tiff(tmp_path):
    pages = [Image.fromarray(np.full((4, 5), 40 * number, np.uint8)) for number in range(4)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])

    def read(page):
        return [np.asarray(picture)[0, 0, 0] for picture in read_images(tmp_path / "a.tif", page=page)]

    assert read(0) == [0]
    assert read("all") == [0, 40, 80, 120]
    assert read([3, 1]) == [120, 40]
    assert read("last") == [120]
    with pytest.raises(DataError, match=r"a.tif has no page 4: it has 4, from 0 to 3"):
        read(4)


def test_only_pixels_are_returned(tmp_path, color):
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "Doe^Jane")
    Image.fromarray(color).save(tmp_path / "a.png", pnginfo=text)
    assert read_images(tmp_path / "a.png")[0].info == {}


def test_a_truncated_file_is_refused(tmp_path, color):
    big = np.kron(color, np.ones((20, 20, 1), np.uint8))
    for suffix in (".png", ".jpg", ".tif", ".webp", ".bmp"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(big).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=rf"a\{suffix} is truncated or damaged|a\{suffix} is not an image"):
            read_images(path)


def test_an_image_with_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match=r"a.png has more than 40 pixels: cut it into tiles"):
        read_images(write_png(tmp_path / "a.png", np.zeros((10, 10), np.uint8)))


@pytest.mark.parametrize(
    "name, size", [("retina.jpg", (1411, 1411)), ("ihc.png", (512, 512)), ("cxr_nih_00000001_000.png", (512, 512))]
)
def test_real_files(name, size):
    if not (DATA / name).exists():
        pytest.skip("the shared data folder is not beside this checkout")
    picture = read_images(DATA / name)[0]
    assert picture.size == size
    assert np.asarray(picture).std() > 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA", "F"])
def test_every_orientation_of_an_uncompressed_tiff(tmp_path, mode, orientation):
    values = np.arange(24).reshape(4, 6)
    channels = {"L": 0, "I;16": 0, "F": 0, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.stack([values * 10] * channels, -1) if channels else values * 10
    if mode == "RGBA":
        pixels[..., 3] = 255
    kind = {"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)
    path = tmp_path / "a.tif"
    Image.fromarray(pixels.astype(kind)).save(path, tiffinfo={274: orientation})
    # Sides of the picture at which the first row and the first column of the file lie (TIFF 6.0, page 36).
    turned = [None, values, values[:, ::-1], values[::-1, ::-1], values[::-1]]
    turned += [values.T, values.T[:, ::-1], values.T[::-1, ::-1], values.T[::-1]]
    expected = turned[orientation] * 10.0
    if mode in ("I;16", "F"):
        expected = np.rint(expected / 230 * 255)
    picture = np.asarray(read_images(path)[0])
    assert np.array_equal(picture[..., 0], expected)


def write_tiff(path, pixels, sample_format, planar=1, order="<", deflate=False, extra=None):
    """Write a TIFF with one strip per plane (TIFF 6.0, pages 13 to 39)."""
    height, width, *channels = pixels.shape
    count, bits = channels[0] if channels else 1, pixels.dtype.itemsize * 8
    planes = np.moveaxis(pixels, -1, 0) if planar == 2 else pixels[None]
    strips = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    begin = 8 + sum(map(len, strips))
    tags = {256: [width], 257: [height], 258: [bits] * count, 259: [8 if deflate else 1]}
    starts = [8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    tags |= {262: [2 if count > 2 else 1], 273: starts, 277: [count], 278: [height]}
    tags |= {279: [len(strip) for strip in strips], 284: [planar], **(extra or {}), 339: [sample_format] * count}
    entries, rest = b"", b""
    for tag, numbers in tags.items():
        value = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(value) > 4:
            position = begin + 2 + 12 * len(tags) + 4 + len(rest)
            value, rest = struct.pack(f"{order}I", position), rest + value
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + value
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", begin)
    path.write_bytes(header + b"".join(strips) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + rest)
    return path


@pytest.mark.parametrize("number_type, sample_format", [(np.uint16, 1), (np.int16, 2), (np.int32, 2), (np.float32, 3)])
@pytest.mark.parametrize("deflate", [True, False])
def test_big_endian_numbers_of_a_tiff(tmp_path, number_type, sample_format, deflate):
    values = np.linspace(-20_000, 20_000, 48).astype(np.int16).reshape(6, 8).astype(number_type)
    path = write_tiff(tmp_path / "a.tif", values, sample_format, order=">", deflate=deflate)
    lowest, highest = float(values.min()), float(values.max())
    assert np.abs(pixels(path)[..., 0] - (values.astype(float) - lowest) / (highest - lowest) * 255).max() <= 0.51


@pytest.mark.parametrize("number_type, sample_format", [(np.int8, 2), (np.int16, 2), (np.int32, 2), (np.uint32, 1)])
def test_the_sign_of_the_numbers_of_a_tiff(tmp_path, number_type, sample_format):
    limits = np.iinfo(number_type)
    values = np.linspace(limits.min, limits.max, 48).astype(number_type).reshape(6, 8)
    path = write_tiff(tmp_path / "a.tif", values, sample_format)
    expected = (values.astype(float) - limits.min) / (float(limits.max) - limits.min) * 255
    assert np.abs(pixels(path)[..., 0] - expected).max() <= 0.51


def test_planes_of_colors(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3))
    assert np.array_equal(pixels(write_tiff(tmp_path / "a.tif", values.astype(np.uint8), 1, planar=2)), values)
    path = write_tiff(tmp_path / "b.tif", values.astype(np.uint16), 1, planar=2)
    with pytest.raises(DataError, match=r"b.tif is a TIFF with a plane of more than 8 bits for each color: save its"):
        read_images(path)


@pytest.mark.parametrize("deflate", [True, False])
def test_planes_of_gray_and_transparency(tmp_path, deflate):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 2)).astype(np.uint8)
    path = write_tiff(tmp_path / "a.tif", values, 1, planar=2, deflate=deflate, extra={338: [2]})
    with pytest.raises(DataError, match=r"a.tif is a TIFF with a plane for gray and one for transparency: save its"):
        read_images(path)


def test_a_tiff_of_a_form_that_pillow_does_not_read(tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.zeros((6, 8)), 3)
    with pytest.raises(DataError, match=r"a.tif is a TIFF that is damaged, or whose pixels have a form .* 64 bits"):
        read_images(path)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_the_message_about_a_jpeg_of_12_bits_or_jpeg_ls_names_its_form(tmp_path, name):
    pixel_data = pydicom.dcmread(get_testdata_file(name)).PixelData
    (tmp_path / "a.jpg").write_bytes(pixel_data[pixel_data.index(b"\xff\xd8\xff") :])
    with pytest.raises(
        DataError, match=r"a.jpg is a JPEG that is damaged, or has a form that is not supported, such as"
    ):
        read_images(tmp_path / "a.jpg")
