"""Frames of DICOM files: header without identifying elements, and decoding of pixels by the libraries of pydicom."""

from __future__ import annotations

import gzip
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm.dataset.folder_files import is_hidden
from mllm.dataset.readers.dicom_bits import OVERLAY_BITS, corrected_bits
from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.geometry import check_pixels
from mllm.dataset.readers.guarded import GuardedError, call_guarded
from mllm.dataset.readers.header_fields import PIXEL_TAGS, TAGS, UNKNOWN, shown, warn_of_text
from mllm.dataset.readers.notices import warn_once
from mllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DECODERS = ("pydicom", "pylibjpeg", "pyjpegls", "pillow")
"""Decoding plugins in order of preference. GDCM, pydicom's first choice, comes last: it aborts the process at some
damaged JPEG streams and is only needed for lossless JPEG."""
PREAMBLE = 132
"""Bytes of the preamble of a DICOM file: 128 arbitrary bytes and the letters DICM (PS3.10, section 7.1)."""
_FIRST_ELEMENTS = tuple(
    bytes([group, 0, element, 0])
    for group, elements in ((2, (0, 1, 2, 16)), (8, (0, 1, 5, 8, 22, 24)))
    for element in elements
)
"""First bytes of a DICOM file without preamble: possible tags of its first element, in little endian."""
_DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR."""
_SUFFIXES = (".dcm", ".dicom", ".ima", ".dcm.gz")
_SEEKABLE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
"""Uncompressed transfer syntaxes: one frame is read without the others."""
_GZIP = b"\x1f\x8b"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 92, 93, 201, 202, 203))
"""Transfer syntaxes whose streams contain their transform of colors."""
_COLORS_OF_JPEG_2000 = ("YBR_ICT", "YBR_RCT")
_UNREAD_COLORS = ("YBR_PARTIAL_422", "YBR_PARTIAL_420", "ARGB", "HSV", "CMYK")
_MAX_INFLATED = 1 << 30
"""Maximum size of a deflated or compressed file after decompression, in bytes."""


def is_dicom(path: Path) -> bool:
    """Return True for a file with a suffix or the content of DICOM."""
    return path.name.lower().endswith(_SUFFIXES) or has_dicom_content(path)


def is_image_name(name: str) -> bool:
    """Return False for the directory file of a study, and for hidden files, as some systems add to archives.

    Args:
        name: Name of a file, or a relative path with `/`.
    """
    return name.rpartition("/")[2].lower() != "dicomdir" and not is_hidden(name)


def has_dicom_content(path: Path) -> bool:
    """Return True for a file that begins with the preamble of DICOM, or with one of its first elements."""
    with path.open("rb") as file:
        return begins_as_dicom(file.read(PREAMBLE))


def begins_as_dicom(content: bytes) -> bool:
    """Return True for a content, or its first `PREAMBLE` bytes, that `has_dicom_content` accepts."""
    head = content[:PREAMBLE]
    return head.endswith(b"DICM") or (head[:4] in _FIRST_ELEMENTS and len(head) == PREAMBLE)


def read_header(path: Path, more: Sequence[str] = ()) -> Dataset:
    """Return the elements `TAGS` and `more` of a DICOM file, with its transfer syntax, also if it has no preamble.

    Raises:
        DataError: The file is not a DICOM file, has no pixels, or too many of them.
    """
    import pydicom

    with _decompressed(path) as file:
        # pydicom reads deferred elements from the file, where those of deflated files are compressed.
        defer = None if file != path or _is_deflated(file, path) else 4096
        tags: Any = [*TAGS, *OVERLAY_BITS, *more]
        header = pydicom.dcmread(file, specific_tags=tags, defer_size=defer, force=True)
    if not header.preamble and "Rows" not in header and "SOPClassUID" not in header:
        raise DataError(f"{path} is not a DICOM file: it has neither the DICOM preamble nor elements of an image")
    if _find_pixels(header) is None:
        raise DataError(f"{path} {_missing_pixels_reason(header)}")
    _complete_syntax(header, path)
    check_pixels(path, float(header.get("Columns") or 0), float(header.get("Rows") or 0))
    warn_of_text(header, path)
    return header


def count_frames(header: Dataset, path: Path) -> int:
    """Return the number of frames; raise `DataError` if the file is too short for them."""
    count = int(header.get("NumberOfFrames") or 1)
    # A compressed frame has at least the 8 bytes of an item; those of deflated files may be compressed further.
    size, needed = _MAX_INFLATED if _is_gzip(path) else path.stat().st_size, 8
    if header.file_meta.TransferSyntaxUID in _SEEKABLE:
        bits = int(header.BitsAllocated) * int(header.get("SamplesPerPixel") or 1) * header.Rows * header.Columns
        # YBR_FULL_422 stores two of three values.
        needed = bits // (12 if header.PhotometricInterpretation == "YBR_FULL_422" else 8)
        _warn_of_further_pixels(header, count * needed, path)
    elif header.file_meta.TransferSyntaxUID == _DEFLATED:
        size = _MAX_INFLATED
    if count < 1 or count * needed > size:
        raise DataError(f"{path} is truncated or damaged: it has {size:,} bytes, too few for {count:,} frames")
    return count


def _warn_of_further_pixels(header: Dataset, described: int, path: Path) -> None:
    """Warn of a file with more bytes of pixels than its header describes: at least one row more.

    A color image may be stored without the subsampling that its header states, which pydicom recognizes.
    """
    from pydicom.dataelem import RawDataElement

    name = _find_pixels(header)
    if name is None or header.PhotometricInterpretation == "YBR_FULL_422":
        return
    element = header.get_item(name, keep_deferred=True)
    length = element.length if isinstance(element, RawDataElement) else len(element.value)
    row = described // max(1, header.Rows * int(header.get("NumberOfFrames") or 1))
    if length >= described + max(row, 2):
        warn_once(
            path,
            "further pixels",
            f"has {length:,} bytes of pixels, and its header (rows, columns, frames) describes {described:,}: the "
            "others are ignored",
        )


def decode(path: Path, header: Dataset, indices: Sequence[int]) -> list[np.ndarray]:
    """Return the stored values of frames, each [H, W] or [H, W, 3]; YBR is converted to RGB.

    Compressed pixels are decoded in a guarded process.

    Raises:
        ConfigError: A package is missing.
        DataError: The pixels are damaged, or no library decodes them.
    """
    from pydicom.pixels import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    name = shown(header.file_meta, "TransferSyntaxUID")
    name = "in an encoding that the file does not specify" if name == UNKNOWN else name
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(f"{path} cannot be decoded: its pixels are {name}; convert it to an image or a video") from None
    if not decoder.is_available:
        raise ConfigError(f"{path} needs a decoder for {name}, which is not installed: pip install -e .[dicom]")
    if _needs_libjpeg(header, decoder.available_plugins):
        raise ConfigError(
            f"{path} has JPEG pixels of {shown(header, 'BitsStored')} bits ({name}), which the installed decoders do "
            "not read: pip install pylibjpeg-libjpeg (its license is the GPL)"
        )
    _check_colors(header, path, name)
    plugin = next((name for name in _DECODERS if name in decoder.available_plugins), "")
    try:
        if syntax.is_encapsulated:
            decoded = call_guarded(f"{__name__}:frames", str(path), list(indices), plugin)
        else:
            decoded = list(frames(str(path), indices, plugin))
    except (GuardedError, RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
        reason = error.reason if isinstance(error, GuardedError) else type(error).__name__
        raise DataError(
            f"{path} cannot be decoded: its pixels ({name}) are truncated, damaged or in a form that no installed "
            f"decoder reads ({reason}); if another program opens it, save it as uncompressed DICOM"
        ) from None
    return [corrected_bits(frame, header, path) for frame in decoded]


def _check_colors(header: Dataset, path: Path, encoding: str) -> None:
    """Raise `DataError` for colors that pydicom would return unconverted, so that they would be taken for RGB."""
    colors = str(header.get("PhotometricInterpretation"))
    is_jpeg_2000 = header.file_meta.TransferSyntaxUID in _JPEG_2000
    if colors in _UNREAD_COLORS or (colors in _COLORS_OF_JPEG_2000 and not is_jpeg_2000):
        colors = shown(header, "PhotometricInterpretation")
        raise unusable(path, f"has pixels in {colors} ({encoding}), which is not supported: save it as RGB")


def frames(path: str, indices: Sequence[int], plugin: str) -> Iterator[np.ndarray]:
    """Yield the stored values of frames, decoded by a plugin of pydicom ('' for uncompressed pixels)."""
    import pydicom
    from pydicom.pixels import pixel_array

    with warnings.catch_warnings(), _decompressed(Path(path)) as file:
        # Warnings of pydicom contain values of the file.
        warnings.simplefilter("ignore")
        source: Path | Dataset = file
        if _read_syntax(file) not in _SEEKABLE:
            source = pydicom.dcmread(file, specific_tags=list(TAGS), force=True)
            _complete_syntax(source, Path(path))
        for index in indices:
            # One call per frame: the iterators of pydicom carry the color conversion of a frame over to the next.
            # Of bits above BitsStored pydicom shows nothing; see `corrected_bits`.
            yield pixel_array(source, index=index, decoding_plugin=plugin, correct_unused_bits=False)


def _needs_libjpeg(header: Dataset, plugins: Sequence[str]) -> bool:
    """Return True for a JPEG of 12 bits, which neither Pillow nor GDCM decodes, if pylibjpeg-libjpeg is missing."""
    from pydicom.uid import JPEGExtended12Bit

    is_extended = header.file_meta.TransferSyntaxUID == JPEGExtended12Bit
    return is_extended and "pylibjpeg" not in plugins and (header.get("BitsStored") or 8) > 8


def _read_syntax(path: Path) -> str | None:
    """Return the transfer syntax that a file names; None if it has no preamble or names none."""
    from pydicom.filereader import read_file_meta_info

    with path.open("rb") as file:
        has_preamble = file.read(PREAMBLE).endswith(b"DICM")
    return read_file_meta_info(path).get("TransferSyntaxUID") if has_preamble else None


@contextmanager
def _decompressed(path: Path) -> Iterator[Path]:
    """Yield the file, or for a file that is compressed by gzip a temporary copy without compression."""
    if not _is_gzip(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".dcm") as copy:
        try:
            with gzip.open(path) as stream:
                size = 0
                while chunk := stream.read(1 << 24):
                    size += len(chunk)
                    if size > _MAX_INFLATED:
                        raise unusable(path, f"decompresses to more than {_MAX_INFLATED:,} bytes")
                    copy.write(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise unusable(
                path, f"is truncated or damaged: it cannot be decompressed ({type(error).__name__})"
            ) from None
        copy.flush()
        yield Path(copy.name)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _is_deflated(file: Path, path: Path) -> bool:
    """Return True for a file whose elements are compressed; raise `DataError` if they decompress to too much."""
    from pydicom.filereader import read_file_meta_info

    if _read_syntax(file) != _DEFLATED:
        return False
    # The length of the group counts from the end of its own element, which has 12 bytes.
    begin = PREAMBLE + 12 + int(read_file_meta_info(file).FileMetaInformationGroupLength)
    data, decompressor, size = file.read_bytes()[begin:], zlib.decompressobj(-zlib.MAX_WBITS), 0
    while data and not decompressor.eof:
        size += len(decompressor.decompress(data, 1 << 24))
        data = decompressor.unconsumed_tail
        if size > _MAX_INFLATED:
            raise unusable(path, f"decompresses to more than {_MAX_INFLATED:,} bytes")
    return True


def _find_pixels(header: Dataset) -> str | None:
    """Return the name of the element with the pixels."""
    return next((name for name in PIXEL_TAGS if name in header), None)


def _complete_syntax(header: Dataset, path: Path) -> None:
    """Set the transfer syntax that pydicom recognized in a file without one."""
    from pydicom import uid

    if header.file_meta.get("TransferSyntaxUID") is not None:
        return
    name = _find_pixels(header)
    if name is not None and header[name].is_undefined_length:
        raise DataError(f"{path} cannot be decoded: its pixels are compressed, but the file names no transfer syntax")
    is_implicit, is_little = header.original_encoding
    native = uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian
    header.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if is_implicit else native


def _missing_pixels_reason(header: Dataset) -> str:
    if header.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
        return "is the directory of a DICOM medium (DICOMDIR), not an image: name the image files"
    # pydicom returns an empty header if compressed pixels are truncated.
    if (kind := header.get("SOPClassUID")) is None or "BitsAllocated" in header or "Image" in kind.name:
        return "is truncated or damaged: it is an image, but its pixels are incomplete"
    name = shown(header, "SOPClassUID")
    name = "" if name == UNKNOWN else f": SOP class {name}"
    return f"has no pixels (it is a waveform such as an ECG, a report or a plan{name})"
