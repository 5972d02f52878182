"""Atomic writing of files and folders: contents are written under a temporary name, which is then renamed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mllm.errors import ConfigError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, of an exceeded quota, and of a file beyond the largest size (`ulimit -f`, FAT32)."""
_FULL_IN_TORCH = (". unexpected pos ", "basic_ios::clear: iostream error")
"""Parts of the messages of `torch.save`, which does not name the cause: a block, or the buffer of a small file at its
end, could not be written."""
_DIGEST = "blake2b"
_SURROGATE = re.compile("[\ud800-\udfff]")
_TEMPORARY = re.compile(r"(?P<name>.+)\.(?P<word>tmp|old)-[0-9a-f]{8}")
"""Names that `_temporary_name` returns."""


def is_disk_full(error: BaseException) -> bool:
    """Return True if a file could not be written because the disk is full. Writers of weights raise no `OSError`."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    if type(error).__name__ == "SafetensorError":
        return any(reason in str(error) for reason in ("No space left", "File too large"))
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _FULL_IN_TORCH)


def _temporary_name(path: Path, word: str) -> Path:
    """Return a free name in the folder of `path`, so that it can be renamed within one file system."""
    return path.with_name(f"{path.name}.{word}-{uuid.uuid4().hex[:8]}")


def final_name(name: str) -> str:
    """Return the name that a temporary file gets after it is written; other names are unchanged."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else name


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left directly in a folder.

    The previous version of a folder is restored if the process was killed before the new version got its name.
    """
    for path in sorted(folder.iterdir()):
        if match := _TEMPORARY.fullmatch(path.name):
            target = path.with_name(match["name"])
            if match["word"] == "old" and not target.exists():
                path.rename(target)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def explained_write(path: str | Path) -> Iterator[None]:
    """Convert an `OSError` in the block to a `ConfigError` about `path`, except for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise ConfigError(f"{path} cannot be written ({error.strerror}): choose another path") from error


def refuse_nonempty(out: Path) -> None:
    """Raise `ConfigError` if the output folder `out` of a command is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty; choose another folder")


@contextmanager
def replaced_file(path: str | Path) -> Iterator[IO[str]]:
    """Yield a text file that replaces `path` when the block ends without an error.

    Raises:
        OSError: The disk is full; `filename` is `path`.
        ConfigError: The file cannot be created at `path`.
    """
    with replaced_path(Path(path)) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def compared_file(path: str | Path) -> Iterator[io.BufferedWriter]:
    """Yield a binary file for writing in order, which replaces `path` when the block ends without an error.

    Before it replaces `path`, it is read from the disk and compared with what was written.

    Raises:
        OSError: The disk is full; `filename` is `path`.
        ConfigError: The file cannot be created at `path`, or it differs from what was written.
    """
    path = Path(path)
    with replaced_path(path) as temporary:
        with _Digested(io.FileIO(temporary, "w")) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "linux":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read the disk, not its cache
        digest = hashlib.new(_DIGEST)
        with open(temporary, "rb") as again:
            while block := again.read(1 << 20):
                digest.update(block)
        if digest.digest() != file.digest.digest():
            raise ConfigError(f"{path} differs from what was written to it: check the disk, and repeat the command")


class _Digested(io.BufferedWriter):
    """Binary file with a digest of all bytes that were written to it."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.digest = hashlib.new(_DIGEST)

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)


@contextmanager
def replaced_path(path: Path) -> Iterator[Path]:
    """Yield the name of an empty temporary file that replaces `path` when the block ends without an error.

    Raises:
        OSError: The disk is full; `filename` is `path`.
        ConfigError: The file cannot be created at `path`.
    """
    temporary = _temporary_name(path, "tmp")
    with explained_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    try:
        yield temporary
        with explained_write(path):
            os.replace(temporary, path)
    except OSError as error:
        # The error of write() contains no file name.
        if error.errno in DISK_FULL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` atomically and return the path."""
    with replaced_file(path) as file:
        file.write(text)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` to `path` as indented JSON and return the path; NaN and infinity become null."""
    return write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return `value` as indented JSON with a final newline; NaN and infinity become null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str) + "\n"


def json_line(value: Any) -> str:
    """Return `value` as JSON in one line, with a line feed at its end."""
    line = json.dumps(value, ensure_ascii=False)
    # JSON can escape a lone surrogate in a text; UTF-8 does not have it.
    return (json.dumps(value) if _SURROGATE.search(line) else line) + "\n"


def _finite(value: Any) -> Any:
    """Return `value` with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` when the block ends without an error.

    After an error the previous folder is unchanged.
    """
    folder = Path(folder)
    temporary, old = _temporary_name(folder, "tmp"), _temporary_name(folder, "old")
    with explained_write(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*.safetensors"):
            # safetensors creates files that only their owner can read; they get the permissions of the folder.
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
