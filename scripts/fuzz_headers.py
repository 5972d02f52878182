"""Headers with impossible values for `fuzz.py`: each must be refused, ignored with a warning, or change no pixels."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_kinds import write_videos
from PIL import Image

from mllm.dataset.phantoms.writers import write_nifti
from mllm.dataset.readers import notices, read_images
from mllm.errors import UserError

IMPOSSIBLE_TAGS: tuple[dict[str, Any], ...] = (
    *({"WindowCenter": 40, "WindowWidth": width} for width in (0, -1, -4000)),
    *({"RescaleSlope": slope, "RescaleIntercept": 0} for slope in (0,)),
    *({"PixelSpacing": sides} for sides in ([0, 1], [-1, 1], [1, 1000])),
    *({"PixelAspectRatio": sides} for sides in ([0, 1], [1, -3], [1, 1000])),
    *({"Rows": rows} for rows in (0, 65535, 4000)),
    *({"Columns": columns} for columns in (0, 65535, 4000)),
    *({"NumberOfFrames": count} for count in (-1, 0, 2_000_000_000)),
    *({"BitsAllocated": bits} for bits in (0, 7, 64)),
    *({"BitsStored": bits} for bits in (0, 200)),
    *({"SamplesPerPixel": samples} for samples in (0, 2, 200)),
    {"PhotometricInterpretation": "NONSENSE"},
    {"PixelRepresentation": 9},
)
IMPOSSIBLE_NIFTI: tuple[tuple[int, str, float], ...] = (
    *((42, "<h", value) for value in (0, -5, 32767)),
    *((40, "<h", value) for value in (-1, 0, 8, 300)),
    *((70, "<h", value) for value in (0, 1, 12345)),
    *((80, "<f", value) for value in (0.0, -0.0, float("nan"), float("inf"), 1e9)),
    *((108, "<f", value) for value in (-1e9, float("nan"), float("inf"), 1e12)),
    *((344, "<i", value) for value in (0, 0x41414141)),
    (0, "<i", 0),
)
"""Offset in the header, format and value: dim, datatype, pixdim, vox_offset, magic and sizeof_hdr."""
IMPOSSIBLE_PNG = ((0, 0), (0, 40), (2**31 - 1, 2**31 - 1), (60000, 60000))
"""Width and height."""
IMPOSSIBLE_TIFF: tuple[tuple[int, int], ...] = (
    *((256, value) for value in (0, 1000, 60000, 2**31, 2**32 - 1)),
    *((257, value) for value in (0, 1000, 60000, 2**31, 2**32 - 1)),
    *((258, value) for value in (0, 3, 7, 200)),
    *((259, value) for value in (0, 5, 7, 9999)),
    *((262, value) for value in (7, 99)),
    *((273, value) for value in (0, 1_000_000, 2**32 - 1)),
    *((278, value) for value in (0, 1, 2**32 - 1)),
    *((279, value) for value in (0, 3, 2**32 - 1)),
)
"""Tag and value: width, height, bits, compression, photometric interpretation, offset, rows and bytes of a strip
of a gray file of one strip."""
IMPOSSIBLE_VIDEO: tuple[tuple[str, bytes, int, str, int], ...] = (
    *(("avi", b"avih", offset, "<I", value) for offset in (40, 44) for value in (0, 2**31, 2**32 - 1)),
    *(("avi", b"strf", offset, "<I", value) for offset in (12, 16) for value in (0, 2**31, 2**32 - 1)),
    *(("avi", b"strh", offset, "<I", value) for offset in (28, 32) for value in (0, 2**32 - 1)),
    *(("avi", b"avih", 32, "<I", value) for value in (0, 2**32 - 1)),
    *(("avi", b"strf", 24, "<I", value) for value in (0, 0x41414141)),
    *(("mp4", b"mp4v", offset, ">H", value) for offset in (28, 30) for value in (0, 65535)),
    *(("mp4", b"mdhd", 16, ">I", value) for value in (0, 2**32 - 1)),
    *(("mp4", b"stsz", 12, ">I", value) for value in (0, 2**31, 2**32 - 1)),
    *(("mp4", b"stts", offset, ">I", value) for offset in (12, 16) for value in (0, 2**31, 2**32 - 1)),
    *(("mp4", b"stsc", offset, ">I", value) for offset in (12, 16, 20) for value in (0, 2**32 - 1)),
    *(("mp4", b"stco", 12, ">I", value) for value in (0, 2**32 - 1)),
)
"""Suffix, chunk or box, offset from its name, format and value: sizes, rates, codecs, and counts of frames."""


def read_header(number: int, folder: Path) -> tuple[str, str]:
    """Return the outcome of a header: 'refused', 'accepted' (with a warning or equal pixels), or 'wrong'."""
    name, write, intact = HEADERS[number]
    expected = read_images(intact(folder))[0]
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    notices.logger.addHandler(handler)
    try:
        image = read_images(write(folder))[0]
    except UserError as error:
        return "refused", str(error)
    finally:
        notices.logger.removeHandler(handler)
    return ("accepted", name) if warnings or image == expected else ("wrong", name)


def _dicom(tags: dict[str, Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import pydicom
        from pydicom.data import get_testdata_file

        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
        if "PixelSpacing" not in tags:
            del dataset.PixelSpacing
        for name, value in tags.items():
            setattr(dataset, name, value)
        dataset.save_as(folder / "a.dcm")
        return folder / "a.dcm"

    return write


def _nifti(offset: int, form: str, value: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "a.nii"
        write_nifti(path, np.random.default_rng(0).integers(0, 1000, (12, 14, 9)).astype(np.int16))
        data = bytearray(path.read_bytes())
        # Without the codes of both transforms, the affine is computed from the voxel sizes only.
        struct.pack_into("<hh", data, 252, 0, 0)
        struct.pack_into(form, data, offset, int(value) if form != "<f" else value)
        path.write_bytes(data)
        return path

    return write


def _png(width: int, height: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)).save(path)
        data = bytearray(path.read_bytes())
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
        path.write_bytes(data)
        return path

    return write


def _tiff(tag: int, value: int, compression: str | None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "a.tif"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint16)).save(
            path, compression=compression
        )
        data = bytearray(path.read_bytes())
        (start,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, start)
        entries = {struct.unpack_from("<H", data, start + 2 + 12 * n)[0]: start + 2 + 12 * n for n in range(count)}
        # An entry has a tag, a type (4: 32 bits), a number of values and a value.
        struct.pack_into("<HHII", data, entries[tag], tag, 4, 1, value)
        path.write_bytes(data)
        return path

    return write


def _video(suffix: str, name: bytes, offset: int, form: str, value: int | None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = next(path for path in write_videos(folder) if path.suffix == f".{suffix}")
        data = bytearray(path.read_bytes())
        if value is not None:
            struct.pack_into(form, data, data.index(name) + offset, value)
        path.write_bytes(data)
        return path

    return write


HEADERS = (
    *((f"DICOM {tags}", _dicom(tags), _dicom({})) for tags in IMPOSSIBLE_TAGS),
    *((f"NIfTI {change}", _nifti(*change), _nifti(0, "<i", 348)) for change in IMPOSSIBLE_NIFTI),
    *(
        (f"TIFF {change} {compression}", _tiff(*change, compression), _tiff(256, 48, compression))
        for change in IMPOSSIBLE_TIFF
        for compression in (None, "tiff_lzw")
    ),
    *((f"video {change}", _video(*change), _video(*change[:4], None)) for change in IMPOSSIBLE_VIDEO),
    *((f"PNG {size}", _png(*size), _png(48, 40)) for size in IMPOSSIBLE_PNG),
)
