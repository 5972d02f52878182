"""Image files that rows name: their location, and images that are decoded when they are needed."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from stat import S_ISDIR
from tempfile import NamedTemporaryFile
from typing import Any, TypeAlias

from PIL import Image
from typing_extensions import override

from mllm.dataset.readers import read_images
from mllm.errors import DataError, nearest_names

ImageEntry: TypeAlias = str | Path | Mapping[str, Any]
"""Image of a row: a path, a path with options of its reader, or the `bytes` of a file, as in tables of the Hub."""
_STARTS = {b"GIF8": ".gif", b"II*\0": ".tif", b"MM\0*": ".tif"}
"""First bytes of files of several images, and their suffixes."""
_DICOM_START = 128, b"DICM"
"""Position and text by which DICOM files are recognized."""
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")
_PLAIN = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Suffixes of files whose header has the size of their only image."""
_PILLOW = ("PNG", "JPEG", "WEBP", "BMP")
"""Formats of these files."""
_SELECTING = ("frames", "page", "slice")
"""Options of readers that select several images."""
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
"""Signature of a PNG, and length and type of its first chunk."""
_PNG_SECOND = 33
"""Position of the second chunk of a PNG."""
_ORIENTED = (b"Raw profile type ", b"XML:com.adobe.xmp")
"""Keywords of texts in a PNG that may have an orientation."""
_KEYWORD = max(map(len, _ORIENTED))
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
"""Types of the chunks of texts in a PNG."""
_JPEG = (".jpg", ".jpeg")
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Types of the segment of a JPEG that has its size: baseline, extended and progressive."""
_SKIPPED = (0xE0, *range(0xE2, 0xF0), 0xDB, 0xC4, 0xDD, 0xFE)
"""Types of segments before it: APP0, APP2 to APP15, tables, restart interval and comments; APP1 has EXIF and XMP."""
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF tag of the orientation, and its values that exchange width and height."""


def check_image_folder(folder: Path, option: str = "image_folder") -> None:
    """Raise `DataError` if the folder of images in an option does not exist, with the cause if it is known."""
    if folder.is_dir():
        return
    if folder.is_file():
        raise DataError(f"{option} {folder} is a file: extract it first, and set {option} to the folder of the images")
    if _WINDOWS.match(str(folder)):
        raise DataError(f"{option} {folder} is a Windows path: write the path of the folder on this machine")
    raise DataError(f"{option} {folder} does not exist{_missing_file_hint(folder)}", f"{option} does not exist")


def find_file(folder: Path, name: str | Path) -> Path:
    """Return the path of a file below a folder.

    If no file has the name, it is also searched with `/` for the backslashes of Windows, without white space around it,
    and with accents in the other form of Unicode: macOS writes `u` and a diaeresis for `ü`.

    Raises:
        DataError: The file does not exist.
    """
    text = str(name)
    path = folder / (Path(name).expanduser() if text.startswith("~") else name)
    if os.path.exists(path):  # in half the time of `path.exists()`
        return path
    if _WINDOWS.match(text):
        fault = "is a Windows path: write it relative to image_folder, with /"
        raise DataError(f"image {text} {fault}", f"its image {fault}")
    if _URL.match(text):
        fault = "is a URL: download the images, and write their paths"
        raise DataError(f"image {text[:200]} {fault}", f"its image {fault}")
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, text.replace("\\", "/").strip())
        if other and os.path.exists(folder / other):
            return folder / other
    raise DataError(f"image {path} does not exist{_missing_file_hint(path)}", "its image does not exist")


def _missing_file_hint(path: Path) -> str:
    """Return the end of the message about a missing file: a similar name in its folder, or the missing folder."""
    if not path.parent.is_dir():
        return f" (nor does its folder {path.parent})"
    matches = nearest_names(path.name, [entry.name for entry in path.parent.iterdir()], count=1)
    return f": did you mean {matches[0]!r}?" if matches else ""


def _read(source: Path | Sequence[Path] | bytes, options: Mapping[str, Any]) -> list[Image.Image]:
    """Return the decoded images of a file, or of the bytes of one, which a table has."""
    if not isinstance(source, bytes):
        return read_images(source, **options)
    start, text = _DICOM_START
    suffix = ".dcm" if source[start : start + len(text)] == text else _STARTS.get(source[:4], ".png")
    with NamedTemporaryFile(suffix=suffix) as file:
        file.write(source)
        file.flush()
        try:
            return read_images(file.name, **options)
        except DataError as error:
            message = str(error).replace(file.name, "the image in the table")
            raise DataError(message, error.reason) from None


def undecoded_images(source: Path | Sequence[Path] | bytes, **options: Any) -> list[Image.Image]:
    """Return the images of a file, or of the bytes of one, decoded only when their size or pixels are read."""
    choice = next((options[name] for name in _SELECTING if name in options), "first")
    if choice == "all":
        return _read(source, options)
    count = 1 if isinstance(choice, (str, int)) else len(choice)
    return [UndecodedImage(source, options, number) for number in range(count)]


class RowImages:
    """Images that the rows of a dataset name, read from the files in its `image_folder`."""

    image_folder: Path
    reader: Mapping[str, Any] | None = None
    """Options for the reader of the images."""
    decodes: bool = True
    """False: images are decoded when they are used."""
    files_of_row: Sequence[str] = ()
    """Names of the files that were read for the present row."""

    def read_image(self, image: ImageEntry, **options: Any) -> Image.Image:
        """Return the only image of a file, RGB; see `read_images`.

        Raises:
            DataError: The options select several images.
        """
        images = self.read_images(image, **options)
        if len(images) != 1:
            fault = f"has {len(images)} images, but one is expected: select one"
            raise DataError(f"{image} {fault}", f"its file {fault}")
        return images[0]

    def read_images(self, image: ImageEntry, **options: Any) -> list[Image.Image]:
        """Return the images of a file, RGB: one, unless the options select several frames, slices or pages.

        Args:
            image: Path below `image_folder`, or a dict with the `path` and options of the reader, as rows have it:
                `{"path": "a.dcm", "frames": 3}`. The path of a DICOM series is its folder, or the list of its files.
            options: Options of the reader. They override those of `image`, which override `self.reader`.
        """
        # Most images are texts, and `isinstance` of a Mapping takes longer than reading the type.
        settings = dict(image) if type(image) is not str and isinstance(image, Mapping) else {"path": image}
        name, content = settings.pop("path", None), settings.pop("bytes", None)
        chosen = {**(self.reader or {}), **settings, **options}
        if isinstance(content, bytes):
            self.files_of_row = [*self.files_of_row, name] if isinstance(name, str) else self.files_of_row
            return _read(content, chosen) if self.decodes else undecoded_images(content, **chosen)
        names = name if isinstance(name, list) else [name]
        if not names or any(not isinstance(part, (str, Path)) or not str(part) for part in names):
            fault = "image must be a path, or an object with a 'path'"
            given = f" that is a text, not {name!r}" if isinstance(image, Mapping) else f", not {image!r}"
            raise DataError(f"{fault}{given}", fault)
        files = [find_file(self.image_folder, str(part)) for part in names]
        self.files_of_row = [*self.files_of_row, *map(str, names)]
        path = files if isinstance(name, list) else files[0]
        return _read(path, chosen) if self.decodes else undecoded_images(path, **chosen)


class UndecodedImage(Image.Image):
    """RGB image that is decoded when its pixels are read; its size comes from the header of the file if possible.

    Args:
        path: File, files of a DICOM series, or the bytes of a file.
        options: Options of the reader.
        number: Number of the image among those that the options select.
        size: Width and height in pixels; (0, 0): not known yet.
    """

    def __init__(
        self,
        path: Path | Sequence[Path] | bytes,
        options: Mapping[str, Any],
        number: int,
        size: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self._mode = "RGB"
        self._path, self.options, self.number = path, options, number
        self._is_decoded = False
        self._size = size

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy in another process is made: it is read again, and has the size if that is known."""
        return UndecodedImage, (self._path, self.options, self.number, self._size)

    @property
    def name(self) -> tuple[str, str, int]:
        """Return what the image is read from: files, options of the reader, and its number among their images."""
        place = self.content if isinstance(self._path, bytes) else self._path
        return str(place), repr(sorted(self.options.items(), key=lambda item: item[0])), self.number

    @property
    def files(self) -> list[Path]:
        """Return the files of the image: several for a DICOM series, none for bytes in a table."""
        if isinstance(self._path, bytes):
            return []
        if not isinstance(self._path, Path):
            return list(self._path)
        return sorted(self._path.iterdir()) if self._path.is_dir() else [self._path]

    @property
    def content(self) -> int | str:
        """Return a value by which contents are compared: the size of all files in bytes, or a digest of bytes."""
        if isinstance(self._path, bytes):
            return hashlib.blake2b(self._path, digest_size=16).hexdigest()
        if isinstance(self._path, Path) and not S_ISDIR((state := os.stat(self._path)).st_mode):
            return state.st_size
        return sum(file.stat().st_size for file in self.files)

    @property
    @override
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if not self._is_decoded and self._size == (0, 0):
            if isinstance(self._path, bytes):
                self._size = _size_by_pillow(BytesIO(self._path)) if not self.options else (0, 0)
            elif isinstance(self._path, Path) and self._path.suffix.lower() in _PLAIN and not self.options:
                self._size = _size_in_header(self._path)
            if self._size == (0, 0):
                self.load()
        return self._size

    @override
    def load(self) -> Any:
        """Decode the image."""
        if not self._is_decoded:
            image, *_ = _read(self._path, self._options_of_image())
            self.im, self._size, self._is_decoded = image.im, image.size, True
        return super().load()

    def _options_of_image(self) -> dict[str, Any]:
        """Return the options that select this image only, so that a volume is not read for each of its slices."""
        options = dict(self.options)
        for name in _SELECTING:
            if isinstance(options.get(name), Sequence) and not isinstance(options[name], str):
                options[name] = options[name][self.number]
                break
        return options


def _size_in_header(path: Path) -> tuple[int, int]:
    """Return width and height of an upright image; (0, 0) for a damaged file, which is reported when it is decoded."""
    try:
        size = (_size_of_jpeg if path.suffix.lower() in _JPEG else size_of_png)(path)
        if size is not None:
            return size  # without Pillow, which takes several times as long
    except OSError:
        return (0, 0)
    return _size_by_pillow(path)


def _size_by_pillow(file: Path | BytesIO) -> tuple[int, int]:
    """Return width and height of an upright PNG, JPEG, WebP or BMP; (0, 0) for another or a damaged file."""
    try:
        with Image.open(file, formats=_PILLOW) as image:
            width, height = image.size
            if width == height:
                return width, height
            return (height, width) if image.getexif().get(_ORIENTATION) in _TURNED else (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return (0, 0)


def size_of_png(path: Path) -> tuple[int, int] | None:
    """Return width and height of a PNG without EXIF or XMP metadata, which may have an orientation.

    None: the file is no PNG, or Pillow must decide.
    """
    file = os.open(path, os.O_RDONLY)  # without a buffer, which would read 8 KiB of pixels for each chunk
    try:
        start = os.pread(file, _PNG_SECOND + 8 + _KEYWORD, 0)
        if not start.startswith(_PNG_START):
            return None
        width, height = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
        if not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0):
            return None
        position, chunk = _PNG_SECOND, start[_PNG_SECOND:]
        while len(chunk) >= 8 and (kind := chunk[4:8]) != b"IEND":
            length = int.from_bytes(chunk[:4], "big")
            if kind == b"eXIf" or (kind in _TEXTS and chunk[8 : 8 + length].startswith(_ORIENTED)):
                return None
            position += length + 12
            chunk = os.pread(file, 8 + _KEYWORD, position)
    finally:
        os.close(file)
    return width, height


def _size_of_jpeg(path: Path) -> tuple[int, int] | None:
    """Return width and height of a JPEG without EXIF or XMP metadata, which may have an orientation.

    None: the file is no JPEG of 8 bits, or Pillow must decide.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        if os.pread(file, 2, 0) != b"\xff\xd8":
            return None
        position = 2
        while len(segment := os.pread(file, 10, position)) == 10 and segment[0] == 0xFF:
            kind, length = segment[1], int.from_bytes(segment[2:4], "big")
            if kind in _FRAMES:
                height, width = int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")
                is_usual = segment[4] == 8 and segment[9] in (1, 3, 4)
                return (width, height) if is_usual and 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0) else None
            if kind not in _SKIPPED or length < 2:
                return None
            position += 2 + length
    finally:
        os.close(file)
    return None
