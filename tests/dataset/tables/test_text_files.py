"""Text files of datasets that are no tables of rows: lists of splits, reports, headers and annotations."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.dataset.tables.text_files import read_text_file
from mllm.errors import DataError
from mllm.registry import DATASETS

FILES = {
    "CamusDataset": "training/*/Info_4CH.cfg",
    "CheXpertDataset": "*/train.csv",
    "ChestXray14Dataset": "train_val_list.txt",
    "IUXrayDataset": "annotation.json",
    "MIMICCXRDataset": "files/*/*/*.txt",
    "ReferDataset": "instances.json",
    "SLAKEDataset": "train.json",
}
"""A file of the miniature of each class."""


@pytest.mark.parametrize("name", FILES)
def test_a_mark_of_utf_8_is_ignored_and_another_encoding_refused(tmp_path: Path, name: str) -> None:
    options = {"type": name, **DATASETS.find(name).miniature(tmp_path, 2)}
    file = next(file for file in sorted(tmp_path.glob(FILES[name])) if file.is_file())
    content = file.read_bytes()
    expected = len(build_dataset(options))
    file.write_bytes(b"\xef\xbb\xbf" + content)
    assert len(check_splits({"train": build_dataset(options)})["train"]) == expected
    file.write_bytes(content[:20] + b"\xe4\xff" + content[20:])
    with pytest.raises(DataError, match=rf"{file.name}.*"):
        check_splits({"train": build_dataset(options)})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot be read"),
        (b"caf\xe9", "is not text in UTF-8: save it as UTF-8"),
        (b"\x1f\x8b damaged", "cannot be read|is truncated or damaged"),
        (b"\x89PNG\r\n\x1a\n\xff", "is not text in UTF-8"),
    ],
)
def test_the_message_names_the_file_and_the_reason_does_not(tmp_path: Path, content: bytes | None, fault: str) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"list\.txt ({fault})") as error:
        read_text_file(path)
    assert error.value.reason is not None
    assert "list" not in error.value.reason
