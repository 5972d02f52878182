"""Images, DICOM files, volumes and videos in requests."""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import psutil
from PIL import Image, UnidentifiedImageError

from mllm.dataset.readers import read_images
from mllm.dataset.readers.archive import BEGINNING, unpack, unpacked_size
from mllm.dataset.readers.dicom_frames import begins_as_dicom
from mllm.dataset.readers.notices import unlogged
from mllm.dataset.readers.pixel_limit import TooManyPixelsError, counted_pixels, limited_pixels
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS
from mllm.serve.limits import RequestError

MEMORY = Path("/dev/shm")
"""Folder of files in memory, on Linux."""
_PREFIX = "mllm-upload-"
"""Beginning of the names of temporary folders; the number of the process follows."""
_UNPACKED = 20
"""Maximum size of the files of an archive, in sizes of the archive: DICOM files shrink to a third."""
_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]+)*?;base64,")
"""Beginning of an address that holds its content."""
_STARTS = (
    (128, b"DICM", ".dcm"),  # first, because the 128 bytes before it can be the header of a TIFF file
    *((0, b"\x89PNG", ".png"), (0, b"\xff\xd8\xff", ".jpg"), (0, b"GIF8", ".gif"), (0, b"BM", ".bmp")),
    *((0, b"II*\0", ".tif"), (0, b"MM\0*", ".tif"), (8, b"WEBP", ".webp"), (8, b"AVI ", ".avi"), (4, b"ftyp", ".mp4")),
    *((0, b"\x1f\x8b", ".nii.gz"), (344, b"n+1\0", ".nii"), (344, b"n+2\0", ".nii")),
    *((0, b"NRRD", ".nrrd"), (0, b"ObjectType", ".mha"), (0, b"NDims", ".mha"), (0, b"\x1a\x45\xdf\xa3", ".mkv")),
)
"""Position and bytes by which files are recognized, and their suffixes."""


def content_of_url(url: Any, where: str) -> bytes:
    """Return the content of a data URL.

    Raises:
        RequestError: It is another address, which the server does not fetch, or is damaged.
    """
    if not isinstance(url, str):
        raise RequestError(f"{where} must be a data URL, such as data:image/png;base64,...")
    start = _DATA_URL.match(url)
    if start is None:
        kind = "no base64 data" if url.startswith("data:") else "an address or a path"
        raise RequestError(f"{where} is {kind}, which the server does not read: send data:image/png;base64,...")
    return content_of_base64(url[start.end() :], where)


def content_of_base64(text: str, where: str) -> bytes:
    """Return the bytes of a text in base64. Raise `RequestError` if it is damaged."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where} is no valid base64: send the whole file") from error


def read_content(
    content: bytes, name: str | None, options: Mapping[str, Any], where: str, pixels: int
) -> list[Image.Image]:
    """Return the images of a file, or of the DICOM series in a zip archive.

    Args:
        content: Bytes of the file.
        name: Name of the file, whose suffix selects the reader; None: the content selects it.
        options: Options of the reader: `frames`, `slice`, `axis`, `volume`, `page`, `window`, `square`.
        where: Position in the request, for messages.
        pixels: Maximum number of pixels of all images.

    Raises:
        RequestError: The file is unusable or too large, or an option is wrong.
    """
    if not content:
        raise RequestError(f"{where} is empty")
    if content.startswith(BEGINNING):
        archive, limit = BytesIO(content), _UNPACKED * len(content)
        try:
            size = unpacked_size(archive, limit)
        except DataError as error:
            raise RequestError(f"{where}: {error}") from error
        with _folder_for(size) as folder:
            try:
                files = unpack(archive, folder, limit)
            except DataError as error:
                raise RequestError(f"{where}: {error}") from error
            return _read(folder if len(files) > 1 else files[0], options, where, pixels)
    suffix = _suffix(content, name)
    if suffix in _PICTURES:
        _refuse_large(content, where, pixels)
    with _folder_for(len(content)) as folder:
        path = folder / f"upload{suffix}"
        path.write_bytes(content)
        return _read(path, options, where, pixels)


def read_series(contents: Sequence[bytes], options: Mapping[str, Any], where: str, pixels: int) -> list[Image.Image]:
    """Return images of the volume of a DICOM series, whose files may be in any order; see `read_content`."""
    for number, content in enumerate(contents, start=1):
        if not begins_as_dicom(content):
            raise RequestError(f"{where}: file {number} of the series is no DICOM file: send the slices of one series")
    with _folder_for(sum(map(len, contents))) as folder:
        for number, content in enumerate(contents, start=1):
            (folder / f"file {number} of the series").write_bytes(content)
        return _read(folder, options, where, pixels)


def _read(source: Path, options: Mapping[str, Any], where: str, pixels: int) -> list[Image.Image]:
    """Return the images of a temporary file, or of a folder with a series. Messages do not name it."""
    with unlogged(), limited_pixels(pixels):
        try:
            return read_images(source, **options)
        except TooManyPixelsError as error:
            raise RequestError(f"{where}: {error.reason}", 413) from error
        except (ConfigError, DataError) as error:
            message = str(error)
            if source.is_dir():
                message = message.replace(f"{source}{os.sep}", "").replace(str(source), "the series")
            else:
                message = message.replace(str(source), "the file").replace(source.name, "the file")
            raise RequestError(f"{where}: {message}") from error


_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp"})
"""Suffixes of files whose size Pillow reads."""


def _suffix(content: bytes, name: str | None) -> str:
    """Return the suffix of a file by its name or its content."""
    suffixes = [suffix for suffix in READERS.names() if suffix.startswith(".")]
    known = [suffix for suffix in suffixes if name is not None and name.lower().endswith(suffix)]
    if known:
        return max(known, key=len)
    return next((suffix for start, text, suffix in _STARTS if content[start : start + len(text)] == text), ".dcm")


def _refuse_large(content: bytes, where: str, pixels: int) -> None:
    """Raise `RequestError` for a picture with too many pixels before it is decoded; readers check other files."""
    message = f"{where} has more than {pixels:,} pixels, the limit of this server: send a smaller image"
    try:
        with Image.open(BytesIO(content)) as image:
            count = counted_pixels(image.width, image.height)
    except Image.DecompressionBombError as error:
        raise RequestError(message, 413) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return  # a damaged file, about which its reader has a message
    if count > pixels:
        raise RequestError(message, 413)


@contextmanager
def _folder_for(size: int) -> Iterator[Path]:
    """Yield a folder for files of `size` bytes, for readers that need files; it is removed after the block.

    It is in memory if the system has a folder for such files (Linux) with enough space.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * size
    folder = MEMORY if has_room and os.access(MEMORY, os.W_OK) else Path(gettempdir())
    with TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=folder) as own:
        yield Path(own)


def remove_left_files() -> None:
    """Remove files of servers that were killed while they read an upload."""
    for folder in (MEMORY, Path(gettempdir())):
        for path in folder.glob(f"{_PREFIX}*"):
            number = path.name.removeprefix(_PREFIX).partition("-")[0]
            if number.isdecimal() and not psutil.pid_exists(int(number)):
                shutil.rmtree(path, ignore_errors=True)
