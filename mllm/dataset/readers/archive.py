"""Zip archives with the DICOM files of a study, as archives and viewers export them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from mllm.dataset.readers.dicom_frames import PREAMBLE, begins_as_dicom
from mllm.errors import DataError

BEGINNING = b"PK\x03\x04"
"""First bytes of a zip archive that is not empty."""
_MAX_ENTRIES = 20_000
_CHUNK = 1 << 20


def unpack(archive: Path | IO[bytes], folder: Path, limit: int) -> list[Path]:
    """Write the DICOM images of a zip archive to a folder, and return their paths. Other files are left out.

    A name begins with the number of the file, because files of several folders can have one name.

    Args:
        archive: The archive.
        folder: An existing folder.
        limit: Maximum number of bytes of the unpacked files.

    Raises:
        DataError: The archive is damaged or encrypted, has no DICOM files, or too many bytes.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir() and is_image_name(entry.filename)]
            if len(entries) > _MAX_ENTRIES:
                raise DataError(f"the archive has more than {_MAX_ENTRIES:,} files: pack the files of one series")
            paths = _written(opened, entries, folder, limit)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        is_encrypted = isinstance(error, RuntimeError) and "password" in str(error)
        fault = "encrypted" if is_encrypted else f"damaged ({type(error).__name__})"
        raise DataError(f"the archive cannot be read: it is {fault}") from error
    if not paths:
        raise DataError("the archive has no DICOM files: open other files without an archive")
    return paths


def begins_with(path: Path, beginning: bytes) -> bool:
    """Return True for a file with these first bytes."""
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


def is_image_name(name: str) -> bool:
    """Return False for the directory file of a study, and for hidden files, as some systems add to archives."""
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[-1].lower() != "dicomdir" and not parts[-1].startswith(".") and "__MACOSX" not in parts


def _written(opened: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: Path, limit: int) -> list[Path]:
    """Write the DICOM files among the entries."""
    paths, size = [], 0
    for number, entry in enumerate(entries):
        with opened.open(entry) as source:
            part = source.read(PREAMBLE)
            if not begins_as_dicom(part):
                continue
            path = folder / f"{number}_{PurePosixPath(entry.filename).name[-100:]}"
            with path.open("wb") as target:
                while part:
                    size += len(part)
                    if size > limit:
                        raise DataError(f"the archive has more than {limit:,} bytes when it is unpacked: pack less")
                    target.write(part)
                    part = source.read(_CHUNK)
        paths.append(path)
    return paths
