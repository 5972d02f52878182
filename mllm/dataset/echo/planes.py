"""Reader of 2D images with their pixel size, from the NIfTI and MetaImage files of CAMUS."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from mllm.dataset.readers.gray import full_range, scaled, to_image
from mllm.dataset.readers.guarded import is_installed
from mllm.dataset.readers.metaimage import read_header
from mllm.dataset.readers.nifti import check_size, load_nifti
from mllm.errors import ConfigError, DataError

Plane = tuple[np.ndarray, tuple[float, float]]
"""Values [H, W], and the width and height of a pixel in mm."""
_MAX_BYTES = 1 << 30
"""Maximum size of the pixels of a file after decompression."""


def read_plane(path: Path, frame: int | None = None) -> Plane:
    """Read a 2D image from a `.mhd`, `.mha`, `.nii` or `.nii.gz` file.

    The first stored pixel is the top left one. Directions in the header are ignored, because ultrasound has none.

    Args:
        path: The file.
        frame: Index from 0 in a series; None: the file has one image.

    Raises:
        DataError: The file is missing, damaged, or has another number of images.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        series, spacing = _metaimage(path) if path.suffix in (".mhd", ".mha") else _nifti(path)
    except (DataError, ConfigError):
        raise
    except Exception as error:
        # nibabel, gzip and zlib raise different types for a damaged file.
        raise DataError(f"{path} cannot be read: it is damaged ({type(error).__name__}: {error})") from error
    if not 0 <= (frame or 0) < len(series) or (frame is None and len(series) > 1):
        expected = "one image is expected" if frame is None else f"frame {frame} is required, counted from 0"
        raise DataError(f"{path} has {len(series)} frames, but {expected}")
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DataError(f"{path} has an invalid pixel size: {spacing} mm")
    return series[frame or 0], spacing


def to_square_pixels(plane: Plane) -> Image.Image:
    """Return a plane as an RGB image, resampled bilinearly to square pixels of the shorter side.

    Values of 8 bits are unchanged; others are scaled from their full range.
    """
    values, (across, down) = plane
    limits = (0.0, 255.0) if values.dtype == np.uint8 else full_range(values)
    image = to_image(scaled(values, *limits)).convert("L")
    side = min(across, down)
    size = round(image.width * across / side), round(image.height * down / side)
    return image.resize(size, Image.Resampling.BILINEAR).convert("RGB")


def _nifti(path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the values [F, H, W] and the pixel size of a NIfTI file."""
    if not is_installed("nibabel"):
        raise ConfigError(f"{path} is a NIfTI file, but nibabel is not installed: pip install -e .[nifti]")
    image = load_nifti(path)
    size = math.prod(image.shape) * image.get_data_dtype().itemsize
    _check_bytes(path, size)
    check_size(path, size)
    across, down = (float(step) for step in image.header.get_zooms()[:2])
    width, height = image.shape[:2]
    return np.asarray(image.dataobj).reshape(width, height, -1, order="F").T, (across, down)


def _metaimage(path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the values [F, H, W] and the pixel size of a MetaImage."""
    header = read_header(path)
    _check_bytes(path, header.size)
    return header.read(0).T, header.spacing[:2]


def _check_bytes(path: Path, size: int) -> None:
    """Raise `DataError` for images of more than `_MAX_BYTES`."""
    if size > _MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes of pixels, but at most {_MAX_BYTES:,} are supported")
