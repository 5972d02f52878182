"""Files in requests: readers by content, and no file that stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from medical_files import pydicom_file, write_png
from PIL import Image

from mllm.dataset.readers import read_images
from mllm.serve import attachments
from mllm.serve.attachments import content_of_url, read_content, remove_left_files
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
