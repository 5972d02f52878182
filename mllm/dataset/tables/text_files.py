"""Text files of tables in any encoding that their first bytes determine, also compressed by gzip."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, cast

from mllm.errors import DataError

_GZIP = b"\x1f\x8b"
_UNICODE = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte order marks and their encodings; UTF-32 first, because its mark begins with that of UTF-16."""
_BINARY_FORMATS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook: extract it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook: save the sheet as CSV"),
    (b"PAR1", "a Parquet file: rename it to .parquet"),
    (b"SQLite format 3", "an SQLite database: export the table as CSV"),
    (b"%PDF", "a PDF document"),
    (b"BZh", "a file compressed by bzip2: extract it"),
    (b"\xfd7zXZ\0", "a file compressed by xz: extract it"),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd: extract it"),
    (b"7z\xbc\xaf", "a 7z archive: extract it"),
    (b"ARROW1", "an Arrow or Feather file: save it as Parquet"),
    (b"\x89HDF", "an HDF5 file: export the table as CSV"),
    (b"{\\rtf", "a document of a word processor: save it as text"),
    (b"version https://", "a pointer of Git LFS: fetch the file with git lfs pull"),
    (b"<!DOCTYPE", "a web page: download the file itself"),
    (b"<html", "a web page: download the file itself"),
)
"""First bytes of files that are not text, and a description of their format."""


def table_suffix(path: Path) -> str:
    """Return the suffix of a table in lower case, without `.gz`."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def is_plain(path: Path) -> bool:
    """Return True for a file that is neither compressed nor in UTF-16 or UTF-32, so that its bytes are UTF-8 lines.

    Raises:
        DataError: The file is not text.
    """
    return not _is_compressed(path) and _encoding(path) == "utf-8-sig"


def open_text(path: Path) -> IO[str]:
    """Open a text file for reading, without conversion of line ends.

    Raises:
        DataError: The file is not text, or is in UTF-16 without a byte order mark.
    """
    encoding = _encoding(path)
    if _is_compressed(path):
        return cast(IO[str], gzip.open(path, "rt", encoding=encoding, newline=""))
    return path.open(encoding=encoding, newline="")


def read_text(path: Path) -> str:
    """Return the contents of a text file; see `open_text`."""
    with open_text(path) as file:
        return file.read()


def read_text_file(path: Path) -> str:
    """Return the contents of a text file of a dataset that is no table: a list, an annotation or a report.

    Raises:
        DataError: The file does not exist, cannot be read, is damaged, or is not text.
    """
    try:
        return read_text(path)
    except UnicodeError:
        fault = "is not text in UTF-8: save it as UTF-8"
    except OSError as error:
        fault = f"cannot be read ({error.strerror or 'it cannot be decompressed'})"
    except (EOFError, zlib.error):
        fault = "is truncated or damaged: it cannot be decompressed"
    raise DataError(f"{path} {fault}", f"its file {fault}")


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _encoding(path: Path) -> str:
    """Return the encoding of a file by its first bytes after decompression."""
    with gzip.open(path) if _is_compressed(path) else path.open("rb") as file:
        head = file.read(16)
    for mark, kind in _BINARY_FORMATS:
        if head.startswith(mark):
            raise DataError(f"{path} is not a table in text but {kind}")
    for mark, encoding in _UNICODE:
        if head.startswith(mark):
            return encoding
    if b"\0" in head[:4]:
        raise DataError(f"{path} seems to be in UTF-16 without a byte order mark: save it as UTF-8")
    return "utf-8-sig"
