"""Zip archives with the DICOM files of a study, as archives and viewers export them."""

from __future__ import annotations

import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from mllm.dataset.readers.dicom_frames import PREAMBLE, begins_as_dicom, is_image_name
from mllm.errors import DataError

BEGINNING = b"PK\x03\x04"
"""First bytes of a zip archive that is not empty."""
_MAX_ENTRIES = 20_000
_CHUNK = 1 << 20
_LONGEST = 40
"""Number of last characters of a name that are kept: file systems limit names to 143 to 255 bytes."""
_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(RuntimeError, ValueError, IndexError, OverflowError),
)
"""Errors of `zipfile` at archives that are damaged or encrypted."""


def unpack(archive: Path | IO[bytes], folder: Path, limit: int) -> list[Path]:
    """Write the DICOM images of a zip archive to a folder, and return their paths. Other files are left out.

    A name is the number of the file and the end of its name in ASCII: files of several folders can have one name.

    Args:
        archive: The archive.
        folder: An existing folder without other files.
        limit: Maximum number of bytes of the unpacked files.

    Raises:
        DataError: The archive is damaged or encrypted, has no DICOM files, or too many bytes, or there is no room.
    """
    with _opened(archive) as opened:
        try:
            paths = _written(opened, folder, limit)
        except OSError as error:
            reason = f"{error.strerror}: free space, or pack less"
            raise DataError(f"the files of the archive cannot be written: {reason}") from error
    if not paths:
        raise DataError("the archive has no DICOM files: open other files without an archive")
    return paths


def unpacked_size(archive: Path | IO[bytes], limit: int) -> int:
    """Return a number of bytes that suffices for the files that `unpack` writes. Raise `DataError` as it does."""
    with _opened(archive) as opened:
        return min(limit, sum(entry.file_size for entry in _entries(opened)))


def begins_with(path: Path, beginning: bytes) -> bool:
    """Return True for a file with these first bytes."""
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


@contextmanager
def _opened(archive: Path | IO[bytes]) -> Iterator[zipfile.ZipFile]:
    with _sentence():
        opened = zipfile.ZipFile(archive)
    with opened:
        yield opened


@contextmanager
def _sentence() -> Iterator[None]:
    """Raise `DataError` for the errors of a damaged or encrypted archive that is read in the block."""
    try:
        yield
    except _FAULTS as error:
        is_encrypted = isinstance(error, RuntimeError) and "password" in str(error)
        fault = "encrypted" if is_encrypted else f"damaged ({type(error).__name__})"
        raise DataError(f"the archive cannot be read: it is {fault}") from error


def _entries(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files that can be images."""
    with _sentence():  # `is_dir` fails at an empty name
        entries = [entry for entry in opened.infolist() if not entry.is_dir() and is_image_name(entry.filename)]
    if len(entries) > _MAX_ENTRIES:
        raise DataError(f"the archive has more than {_MAX_ENTRIES:,} files: pack the files of one series")
    return entries


def _written(opened: zipfile.ZipFile, folder: Path, limit: int) -> list[Path]:
    """Write the DICOM files of an archive. Raise `OSError` if they cannot be written."""
    paths, size = [], 0
    for number, entry in enumerate(_entries(opened)):
        with _sentence():
            source = opened.open(entry)
        with source:
            with _sentence():
                part = source.read(PREAMBLE)
            if not begins_as_dicom(part):
                continue
            end = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(entry.filename).name[-_LONGEST:])
            path = folder / f"{number}_{end}"
            with path.open("wb") as target:
                while part:
                    size += len(part)
                    if size > limit:
                        raise DataError(f"the archive has more than {limit:,} bytes when it is unpacked: pack less")
                    target.write(part)
                    with _sentence():
                        part = source.read(_CHUNK)
        paths.append(path)
    return paths
