"""Tests of the files that rows name, and of images that are decoded when they are used."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from medical_files import write_dicom
from PIL import Image

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.dataset.image_files import check_image_folder, find_file, undecoded_images
from mllm.dataset.readers import read_images
from mllm.errors import DataError


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "im").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "im" / "a.png")
    Image.fromarray(pixels[:, ::2]).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.fromarray(pixels)])
    return tmp_path


def test_separators_of_windows_are_understood_where_no_file_has_them(folder):
    assert find_file(folder, "im\\a.png") == folder / "im/a.png"
    (folder / "im\\a.png").write_bytes(b"x")
    assert find_file(folder, "im\\a.png") == folder / "im\\a.png"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (r"C:\data\a.png", r"image C:\\data\\a.png is a Windows path: write it relative to image_folder"),
        (r"\\server\a.png", "is a Windows path"),
        ("im/a.PNG", r"image .*im/a\.PNG does not exist: did you mean 'a\.png'\?"),
        ("gone/a.png", r"does not exist \(nor does its folder .*gone\)"),
    ],
)
def test_the_message_about_a_missing_file_has_the_cause(folder, name, message):
    with pytest.raises(DataError, match=message):
        find_file(folder, name)


def test_the_message_about_an_image_folder_has_the_cause(folder):
    (folder / "im.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"image_folder .*im\.zip is a file: extract it first, and set image_folder"):
        check_image_folder(folder / "im.zip")
    with pytest.raises(DataError, match="image_folder D:/x is a Windows path"):
        check_image_folder(Path("D:/x"))
    with pytest.raises(DataError, match="image_folder .*gone does not exist"):
        check_image_folder(folder / "gone")
    (folder / "pictures").mkdir()
    with pytest.raises(DataError, match=r"image_folder .*pictres does not exist: did you mean 'pictures'\?"):
        check_image_folder(folder / "pictres")


@pytest.mark.parametrize(
    ("name", "options"),
    [("im/a.png", {}), ("pages.tif", {}), ("pages.tif", {"page": [1, 0]}), ("pages.tif", {"page": "all"})],
)
def test_undecoded_images_equal_decoded_ones(folder, name, options):
    decoded, undecoded = read_images(folder / name, **options), undecoded_images(folder / name, **options)
    assert [image.size for image in undecoded] == [image.size for image in decoded]
    assert [(image.width, image.height, image.mode) for image in undecoded] == [
        (image.width, image.height, image.mode) for image in decoded
    ]
    for image, expected in zip(undecoded_images(folder / name, **options), decoded, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
        np.testing.assert_array_equal(np.asarray(image.crop((1, 2, 5, 6))), np.asarray(expected.crop((1, 2, 5, 6))))
    assert undecoded_images(folder / name, **options)[0].convert("L").getpixel((3, 3)) == decoded[0].convert(
        "L"
    ).getpixel((3, 3))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("exif_position", ["before", "after", "absent"])
def test_the_size_of_a_turned_image_is_upright(folder, suffix, exif_position):
    exif = Image.Exif()
    exif[0x0112] = 8
    path = folder / f"turned{suffix}"
    image = Image.open(folder / "im" / "a.png")
    image.save(path, **({} if exif_position == "absent" else {"exif": exif.tobytes()}))
    if suffix == ".png" and exif_position == "after":  # move the chunk after the pixels
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert undecoded_images(path)[0].size == read_images(path)[0].size
    assert read_images(path)[0].size == ((20, 12) if exif_position == "absent" else (12, 20))


@pytest.mark.parametrize(
    "mode, options", [("RGB", {}), ("RGB", {"progressive": True}), ("L", {"comment": b"a note"}), ("CMYK", {})]
)
def test_the_size_of_a_jpeg_is_that_of_pillow(folder, mode, options):
    path = folder / "a.jpeg"
    Image.new(mode, (20, 12)).save(path, **options)
    with Image.open(path) as image:
        assert undecoded_images(path)[0].size == image.size == (20, 12)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match="a.jpeg"):
        undecoded_images(path)[0].load()


def test_the_size_of_an_image_does_not_decode_it(folder, monkeypatch):
    monkeypatch.setattr("mllm.dataset.image_files.read_images", None)
    assert undecoded_images(folder / "im" / "a.png")[0].size == (20, 12)


def test_images_whose_bytes_a_table_has(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)) for _ in range(3)]
    contents = []
    for name, picture in zip(("0.png", "1.bmp", "2.tif"), pictures, strict=True):
        picture.save(tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    write_dicom(tmp_path / "3.dcm", np.arange(240).reshape(12, 20))
    contents += [(tmp_path / "3.dcm").read_bytes(), contents[0][:90], b"no image"]
    rows = [{"image": {"bytes": content, "path": None}, "question": "what?", "answer": "a"} for content in contents]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "plain.parquet")
    features = datasets.Features(
        image=datasets.Image(), question=datasets.Value("string"), answer=datasets.Value("string")
    )
    datasets.Dataset.from_list(rows[:3], features=features).to_parquet(tmp_path / "decoded.parquet")
    data = build_dataset({"type": "VQADataset", "data_path": str(tmp_path / "plain.parquet")})
    for index, picture in enumerate(pictures):
        assert np.array_equal(data.sample(index).images[0], picture)
    assert np.array_equal(data.sample(3).images[0], read_images(tmp_path / "3.dcm")[0])
    undecoded = data.inspect(0).images[0]
    assert (
        undecoded.size == (20, 12) and undecoded.files == [] and np.array_equal(undecoded.convert("RGB"), pictures[0])
    )
    assert undecoded.name == data.inspect(0).images[0].name != data.inspect(1).images[0].name
    for index, fault in ((4, "the image in the table is truncated"), (5, "the image in the table is not an image")):
        with pytest.raises(DataError, match=f"plain.parquet, line {index + 1}: {fault}"):
            data.sample(index)
    hub = build_dataset({"type": "VQADataset", "data_path": str(tmp_path / "decoded.parquet")})
    report = check_splits({"train": hub}).reports["train"]
    assert report.answers.rows == 3 and np.array_equal(hub.plain(1).images[0], pictures[1])
    rows[0]["image"]["bytes"] = contents[1]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:3]), tmp_path / "changed.parquet")
    changed = build_dataset({"type": "VQADataset", "data_path": str(tmp_path / "changed.parquet")})
    assert check_splits({"train": changed}).reports["train"].content != report.content


def test_the_value_of_an_image_that_is_no_path_is_not_repeated(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"image": {"data": b"abc" * 999}, "question": "q", "answer": "a"}]),
        tmp_path / "rows.parquet",
    )
    data = build_dataset({"type": "VQADataset", "data_path": str(tmp_path / "rows.parquet")})
    with pytest.raises(DataError, match="image must be a path, or an object with a 'path' that is a text, not None$"):
        data.sample(0)


def test_a_name_is_also_found_without_white_space_around_it_and_in_the_other_form_of_unicode(tmp_path):
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        name = f"{form} m\u00fcller.png"
        path = tmp_path / unicodedata.normalize(form, name)
        path.touch()
        assert find_file(tmp_path, unicodedata.normalize(other, name)) == path
        assert find_file(tmp_path, f" {unicodedata.normalize(other, name)} ") == path
    with pytest.raises(DataError, match="absent.png does not exist"):
        find_file(tmp_path, "absent.png")


@pytest.mark.parametrize("name", ["https://example.org/a.png", "s3://bucket/a.png", "data:image/png;base64,AAAA"])
def test_a_url_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=f"image {name} is a URL: download the images, and write their paths"):
        find_file(tmp_path, name)
