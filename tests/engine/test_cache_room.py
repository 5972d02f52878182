"""Tests of `mllm.engine.cache_room`: the limit of a cache, and the removal of features of other models."""

import os
from pathlib import Path

from mllm.engine.cache_room import CacheRoom


def write(folder: Path, size: int, used: float) -> Path:
    """Write the folder of a model with a file of `size` bytes that was used `used` seconds after the epoch."""
    (folder / "ab").mkdir(parents=True)
    (folder / "ab" / "x.safetensors").write_bytes(bytes(size))
    os.utime(folder, (used, used))
    return folder


def test_other_models_are_removed_when_the_room_is_used_up_the_oldest_first(tmp_path):
    old, new = write(tmp_path / "old", 30, used=1000), write(tmp_path / "new", 40, used=2000)
    room = CacheRoom(write(tmp_path / "own", 10, used=500), limit=100)
    assert room.take(20) and old.exists() and room.bytes == 0
    assert room.take(25) and not old.exists() and new.exists() and room.bytes == 5
    assert room.take(45) and not new.exists() and room.bytes == 0
    assert not room.take(1) and (tmp_path / "own" / "ab" / "x.safetensors").exists()


def test_processes_share_the_room(tmp_path):
    write(tmp_path / "other", 40, used=1000)
    room = CacheRoom(tmp_path / "own", limit=100, processes=2)
    assert room.bytes == 30 and room.take(30) and room.take(20) and not room.take(1)
    assert (tmp_path / "own").stat().st_mtime > 1e9, "the time of the last use"
