"""Planar images and the size of their pixels, from NIfTI and MetaImage files as CAMUS has them."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from mllm.dataset.readers.gray import full_range, scaled, to_image
from mllm.errors import ConfigError, DataError

Plane = tuple[np.ndarray, tuple[float, float]]
"""[H, W] values, and the mm from one pixel to the next across and down."""
_ELEMENTS = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_plane(path: Path, frame: int | None = None) -> Plane:
    """The picture in a `.mhd`, `.mha`, `.nii` or `.nii.gz` file, or a `frame` of a series, from 0.

    Stored first is the left, top pixel; what a header says of directions is not looked at, since ultrasound has none.
    Raises `DataError`, which names the file, for one that is missing, damaged or no plane.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        series, spacing = _metaimage(path) if path.suffix in (".mhd", ".mha") else _nifti(path)
    except (DataError, ConfigError):
        raise
    except Exception as error:
        # nibabel, gzip and zlib each raise their own kinds for one and the same damaged file.
        raise DataError(f"{path} cannot be read: it is damaged ({type(error).__name__}: {error})") from error
    if not 0 <= (frame or 0) < len(series) or (frame is None and len(series) > 1):
        which = "one picture is expected" if frame is None else f"frame {frame} is asked for, counted from 0"
        raise DataError(f"{path} holds {len(series)} frames where {which}")
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DataError(f"{path} does not say how large its pixels are: {spacing} mm")
    return series[frame or 0], spacing


def shown(plane: Plane) -> Image.Image:
    """The plane as an RGB picture with square pixels of the shorter side, resampled bilinearly.

    Bytes are shown as they are, other values in their full range.
    """
    values, (across, down) = plane
    limits = (0.0, 255.0) if values.dtype == np.uint8 else full_range(values)
    picture = to_image(scaled(values, *limits)).convert("L")
    side = min(across, down)
    size = round(picture.width * across / side), round(picture.height * down / side)
    return picture.resize(size, Image.Resampling.BILINEAR).convert("RGB")


def _nifti(path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """[F, H, W] and the spacing of a NIfTI file."""
    try:
        import nibabel
    except ImportError:
        raise ConfigError(f"{path} is a NIfTI file, for which nibabel is missing: pip install -e .[nifti]") from None
    image = nibabel.load(path, mmap=False)
    if not isinstance(image, nibabel.Nifti1Image):
        raise DataError(f"{path} is no NIfTI file (it is a {type(image).__name__})")
    across, down = (float(step) for step in image.header.get_zooms()[:2])
    width, height = image.shape[:2]
    return np.asarray(image.dataobj).reshape(width, height, -1, order="F").T, (across, down)


def _metaimage(path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """[F, H, W] and the spacing of a MetaImage, whose pixels may lie in the file or beside it, compressed or not."""
    data = path.read_bytes()
    header: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in header:
        end = data.find(b"\n", at)
        if at >= len(data):
            raise DataError(f"{path} is no MetaImage: it names no ElementDataFile")
        key, _, value = data[at : end if end >= 0 else len(data)].decode("ascii").partition("=")
        header[key.strip()] = value.strip()
        at = end + 1 if end >= 0 else len(data)
    name = header["ElementDataFile"]
    if name != "LOCAL":
        beside = path.with_name(name)
        if not beside.is_file():
            raise DataError(f"{beside}, which {path} names, does not exist")
        data, at = beside.read_bytes(), 0
    pixels = zlib.decompress(data[at:]) if _is_true(header, "CompressedData") else data[at:]
    kind = _ELEMENTS.get(header["ElementType"])
    if kind is None:
        raise DataError(f"{path} holds pixels of type {header['ElementType']}, which is not read")
    order = ">" if _is_true(header, "BinaryDataByteOrderMSB") or _is_true(header, "ElementByteOrderMSB") else "<"
    width, height, *further = (int(length) for length in header["DimSize"].split())
    shape = math.prod(further), height, width
    across, down = (float(step) for step in header["ElementSpacing"].split()[:2])
    return np.frombuffer(pixels, order + kind, count=math.prod(shape)).reshape(shape), (across, down)


def _is_true(header: dict[str, str], key: str) -> bool:
    return header.get(key, "").lower() in ("true", "1")
