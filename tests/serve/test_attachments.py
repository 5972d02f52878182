"""Files in requests: readers by content, and no file that stays."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medical_files import pydicom_file, write_png, write_series
from PIL import Image

from mllm.dataset.readers import read_images
from mllm.serve import attachments
from mllm.serve.attachments import content_of_url, read_content, read_series, remove_left_files
from mllm.serve.limits import RequestError


def test_the_content_selects_the_reader_and_no_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(attachments, "MEMORY", memory)
    png = write_png(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8))
    seen: list[str] = []
    real = attachments.read_images

    def read(path: Path, **options: object) -> object:
        seen.append(str(path))
        return real(path, **options)

    monkeypatch.setattr(attachments, "read_images", read)
    for path in (png, Path(pydicom_file("CT_small.dcm")), Path(pydicom_file("MR_small.dcm"))):
        (image,) = read_content(path.read_bytes(), None, {}, "image", 10**6)
        assert image.tobytes() == read_images(path)[0].tobytes()
    assert all(name.startswith(str(memory)) for name in seen) and not os.listdir(memory)
    with pytest.raises(RequestError, match=r"image: the file is truncated or damaged") as caught:
        read_content(png.read_bytes()[:-30], None, {}, "image", 10**6)
    assert str(memory) not in str(caught.value) and not os.listdir(memory)
    with pytest.raises(RequestError, match="its images have 16,384 pixels, and the limit is 9,999: select fewer"):
        read_content(Path(pydicom_file("CT_small.dcm")).read_bytes(), None, {}, "image", 9_999)


def zip_of(*files: Path | bytes) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, file in enumerate(files):
            archive.writestr(f"a/{number}", file if isinstance(file, bytes) else file.read_bytes())
    return packed.getvalue()


def test_a_series_in_any_order_or_in_an_archive_is_one_volume(tmp_path: Path) -> None:
    files = write_series(tmp_path / "study")
    contents = [files[number].read_bytes() for number in (2, 0, 3, 1)]
    cases: list[dict[str, Any]] = [{}, {"slice": "all", "window": "lung"}, {"axis": "coronal", "slice": [3, 4]}]
    for options in cases:
        expected = [image.tobytes() for image in read_images(tmp_path / "study", **options)]
        assert [image.tobytes() for image in read_series(contents, options, "image", 10**6)] == expected
        packed = zip_of(b"a viewer", *contents)
        assert [image.tobytes() for image in read_content(packed, "a.zip", options, "image", 10**6)] == expected
    (one,) = read_content(zip_of(files[1]), None, {"window": "lung"}, "image", 10**6)
    assert one.tobytes() == read_images(files[1], window="lung")[0].tobytes()


def test_files_that_are_no_series_are_refused(tmp_path: Path) -> None:
    files = [file.read_bytes() for file in write_series(tmp_path / "study")]
    other = [file.read_bytes() for file in write_series(tmp_path / "other", uid="1.2.4")]
    series: list[tuple[list[bytes], dict[str, Any], str]] = [
        ([*files, *other], {}, r"^image: the series has slices of 2 series: select the files of one of them"),
        ([*files, files[0]], {}, "1 pairs of slices at one position.*file 1 of the series and file 5 of the series"),
        ([files[0], b"text"], {}, "file 2 of the series is no DICOM file"),
        (files, {"slice": 4}, "the series has no slice 4: it has 4, from 0 to 3"),
        (files, {"slice": "all"}, "have 4,096 pixels, and the limit is 2,000"),
        ([files[0], files[1][:-99]], {"slice": 1}, "image: file 2 of the series"),
    ]
    for contents, options, message in series:
        with pytest.raises(RequestError, match=message) as caught:
            read_series(contents, options, "image", 2000)
        assert "mllm-upload" not in str(caught.value)
    for content, message in (
        (zip_of(*files, *other), "image: the series has slices of 2 series"),
        (zip_of(b"text" * 99), "the archive has no DICOM files"),
        (zip_of(*files)[:-40], r"it is damaged \(BadZipFile\)"),
        (zip_of(files[0] + bytes(10**6)), "when it is unpacked: pack less"),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            read_content(content, None, {}, "image", 10**6)
        assert "mllm-upload" not in str(caught.value)


def gif_of(path: Path) -> bytes:
    pictures = [Image.new("L", (100, 80), number) for number in range(3)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path.read_bytes()


def test_many_images_of_a_small_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="image: its images have 4,000,000 pixels, and the limit is 20,000"):
        read_content(gif_of(tmp_path / "a.gif"), None, {"page": [0] * 500}, "image", 20_000)


def test_files_of_killed_servers_are_removed_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MEMORY", tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number in (ended.pid, os.getpid()):
        (tmp_path / f"mllm-upload-{number}-abc").mkdir()
        (tmp_path / f"mllm-upload-{number}-abc" / "upload.dcm").touch()
    remove_left_files()
    assert os.listdir(tmp_path) == [f"mllm-upload-{os.getpid()}-abc"]


@pytest.mark.parametrize("url", ["https://example.org/a.png", "/etc/passwd", "file:///etc/passwd", "data:,abc", 3, ""])
def test_only_data_urls_are_read(url: object) -> None:
    with pytest.raises(RequestError, match="data:image/png;base64"):
        content_of_url(url, "url")
    assert content_of_url("data:image/png;charset=x;base64,QUJD", "url") == b"ABC"
