"""Writing that never leaves half a file: everything is made under a temporary name and then renamed."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mllm.errors import ConfigError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where the disk, or the user's share of it, is full."""


def _beside(path: Path, word: str) -> Path:
    """A free name in the folder of `path`, so that renaming stays within one file system."""
    return path.with_name(f"{path.name}.{word}-{uuid.uuid4().hex[:8]}")


@contextmanager
def place_for(path: str | Path) -> Iterator[None]:
    """Where `path` cannot be made inside, because of its rights or of what stands there, a `ConfigError` says why."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise ConfigError(f"{path} cannot be written ({error.strerror}): choose another place") from error


def refuse_filled(out: Path) -> None:
    """Raise `ConfigError` if the output folder `out` of a command is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty; choose another folder")


@contextmanager
def replaced_file(path: str | Path) -> Iterator[IO[str]]:
    """Gives a text file to write to, which takes the place of `path` when the block ends without an error.

    The file that stood there before is kept until then. Where the disk is full, the `OSError` names `path`;
    where nothing can be made there, a `ConfigError` does.
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    with place_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with place_for(path):
            os.replace(temporary, path)
    except OSError as error:
        # A failing write() does not know its file; the user must.
        if error.errno in DISK_FULL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Writes `text` to `path` at once: a reader sees the old file or the new one, never a part."""
    with replaced_file(path) as file:
        file.write(text)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Writes `value` to `path` as indented JSON; numbers that JSON lacks (NaN, infinity) become null."""
    return write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return `value` as indented JSON with a final newline; NaN and infinity become null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    """`value` without NaN and infinity, which most JSON readers refuse."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which takes the place of `folder` when the block ends without an error.

    The folder that stood there before is moved aside only then and removed last; after an error it is untouched.
    """
    folder = Path(folder)
    temporary, old = _beside(folder, "tmp"), _beside(folder, "old")
    with place_for(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*.safetensors"):
            # safetensors makes files that only their owner reads; others may read them as they may the folder.
            file.chmod(temporary.stat().st_mode & 0o666)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(temporary, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
