"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mllm.errors import ConfigError
from mllm.files import compared_file, remove_temporary, replaced_file, replaced_folder, write_json, write_text


def test_text_replaces_the_old_contents(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    assert write_text(path, "né\n") == path
    assert path.read_bytes() == "né\n".encode()
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_failure_keeps_the_old_file_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), replaced_file(path) as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_binary_file_that_the_disk_changed_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    with compared_file(path) as file:
        file.write(b"one")
        file.write(memoryview(b"two"))
    assert path.read_bytes() == b"onetwo"
    flush = os.fsync

    def damage(descriptor: int) -> None:
        os.pwrite(descriptor, b"X", 2)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(ConfigError, match=r"a\.bin differs from what was written"), compared_file(path) as file:
        file.write(b"three")
    assert path.read_bytes() == b"onetwo"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError) as excinfo, replaced_file(path), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")
    assert excinfo.value.errno == errno.ENOSPC
    assert excinfo.value.filename == str(path)
    assert path.read_text() == "old"


def test_an_impossible_path_has_a_message(tmp_path: Path) -> None:
    file = write_text(tmp_path / "a.txt", "old")
    (tmp_path / "folder").mkdir()
    for place in (file / "b.txt", tmp_path / "folder"):
        with pytest.raises(ConfigError, match=rf"{place} cannot be written \(.+\): choose another path"):
            write_text(place, "new")
    with pytest.raises(ConfigError, match="cannot be written"), replaced_folder(file / "b"):
        pass
    assert file.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "folder"]


def test_json_has_null_for_non_finite_numbers(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"loss": float("nan"), "rows": [1.5, float("inf")], 3: Path("x")})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"loss": None, "rows": [1.5, None], "3": "x"}


def test_a_folder_replaces_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    for name in ("first", "second"):
        with replaced_folder(folder) as temporary:
            assert temporary.parent == tmp_path
            (temporary / name).touch()
    assert os.listdir(folder) == ["second"]
    assert os.listdir(tmp_path) == ["adapter"]


def test_the_old_folder_survives_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights").touch()
    with pytest.raises(RuntimeError), replaced_folder(folder) as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert os.listdir(folder) == ["weights"]
    assert os.listdir(tmp_path) == ["adapter"]


def test_exported_weights_have_the_permissions_of_the_folder(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "adapter") as temporary:
        save_file({"a": torch.ones(1)}, temporary / "adapter_model.safetensors")  # readable for its owner only
    (tmp_path / "plain").write_text("")
    mode = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_mode
    assert mode == (tmp_path / "plain").stat().st_mode


def test_files_of_a_killed_process_are_removed_or_renamed_back(tmp_path):
    (tmp_path / "log.json.tmp-0123abcd").touch()
    for name in ("adapter.tmp-0123abcd", "merged", "merged.old-0123abcd", "student.old-0123abcd", "my.old-folder"):
        (tmp_path / name).mkdir()
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "my.old-folder", "student"]
