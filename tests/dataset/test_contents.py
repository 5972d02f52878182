"""Tests of the digest of a split: files of equal size and other contents."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from mllm.dataset.contents import ContentDigest, content_of
from mllm.dataset.image_files import UndecodedImage
from mllm.structures import Sample


def digest(source: Path | Sequence[Path], reads_files: bool = True) -> str:
    content = ContentDigest()
    content.add(content_of(Sample([], [UndecodedImage(source, {}, 0)]), reads_files))
    return content.hexdigest()


@pytest.mark.parametrize("place", [0, 50_000, 99_999])
def test_start_middle_and_end_of_a_file_are_compared_if_its_size_is_equal(tmp_path, place):
    path = tmp_path / "a.bmp"
    path.write_bytes(bytes(100_000))
    initial, sizes = digest(path), digest(path, reads_files=False)
    assert digest(shutil.copy(path, tmp_path / "moved.bmp")) == initial
    path.write_bytes(bytes(place) + b"1" + bytes(99_999 - place))
    assert digest(path) != initial
    assert digest(path, reads_files=False) == sizes


def test_some_files_of_a_series_are_compared(tmp_path):
    files = [tmp_path / f"{number:03}.dcm" for number in range(100)]
    for file in files:
        file.write_bytes(bytes(10))
    initial = digest(tmp_path)
    assert digest(files) == initial
    for file in files:
        file.write_bytes(b"changed" + bytes(3))
    assert digest(tmp_path) != initial
