"""Images, DICOM files, volumes and videos in requests: decoding without a file on a disk."""

from __future__ import annotations

import base64
import binascii
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, UnidentifiedImageError

from mllm.dataset.readers import read_images
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS
from mllm.serve.limits import RequestError

_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]+)*?;base64,")
"""Beginning of an address that holds its content."""
_STARTS = (
    *((0, b"\x89PNG", ".png"), (0, b"\xff\xd8\xff", ".jpg"), (0, b"GIF8", ".gif"), (0, b"BM", ".bmp")),
    *((0, b"II*\0", ".tif"), (0, b"MM\0*", ".tif"), (8, b"WEBP", ".webp"), (8, b"AVI ", ".avi"), (4, b"ftyp", ".mp4")),
    *((128, b"DICM", ".dcm"), (0, b"\x1f\x8b", ".nii.gz"), (344, b"n+1\0", ".nii"), (344, b"n+2\0", ".nii")),
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
    """Return the images of a file.

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
    suffix = _suffix(content, name)
    _refuse_large(content, where, pixels)
    with _memory_file(content, suffix) as path:
        try:
            images = read_images(path, **options)
        except (ConfigError, DataError) as error:
            message = str(error).replace(str(path), "the file").replace(path.name, "the file")
            raise RequestError(f"{where}: {message}") from error
    count = sum(image.width * image.height for image in images)
    if count > pixels:
        raise RequestError(f"{where}: its images have {count:,} pixels, and the limit is {pixels:,}: select fewer", 413)
    return images


def _suffix(content: bytes, name: str | None) -> str:
    """Return the suffix of a file by its name or its content."""
    suffixes = [suffix for suffix in READERS.names() if suffix.startswith(".")]
    known = [suffix for suffix in suffixes if name is not None and name.lower().endswith(suffix)]
    if known:
        return max(known, key=len)
    return next((suffix for start, text, suffix in _STARTS if content[start : start + len(text)] == text), ".dcm")


def _refuse_large(content: bytes, where: str, pixels: int) -> None:
    """Raise `RequestError` for a picture with too many pixels before it is decoded; readers check other files."""
    largest, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(BytesIO(content)) as image:
            count = image.width * image.height
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return  # another kind of file, or a damaged one, about which its reader has a message
    finally:
        Image.MAX_IMAGE_PIXELS = largest
    if count > pixels:
        raise RequestError(f"{where} has {count:,} pixels, and the limit is {pixels:,}: send a smaller image", 413)


@contextmanager
def _memory_file(content: bytes, suffix: str) -> Iterator[Path]:
    """Yield a path under which readers find a content that is not written to a disk.

    On Linux it is a link to a file in memory, which ends with this process. Other systems have no such files; there it
    is a temporary file, which is removed at the end of the block.
    """
    with TemporaryDirectory(prefix="mllm-") as folder:
        path = Path(folder) / f"upload{suffix}"
        if sys.platform != "linux":
            path.write_bytes(content)
            yield path
            return
        descriptor = os.memfd_create("upload")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            # Also for the guarded process, which has no descriptor of this one.
            path.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
            yield path
        finally:
            os.close(descriptor)
