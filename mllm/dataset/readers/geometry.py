"""Sizes of images: the limit of their pixels, and resampling to square pixels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mllm.errors import DataError

MAX_PIXELS = 178_956_970
"""Maximum number of pixels of an image, the limit at which Pillow refuses a file."""
MAX_RATIO = 50
"""Maximum ratio of the sides of a pixel; larger ratios mean a damaged header."""
_TOLERANCE = 1e-3
"""Relative difference of the sides of pixels that are regarded as square: rounding of the header."""


def check_pixels(path: Path, width: float, height: float) -> None:
    """Raise `DataError` if an image has more than `MAX_PIXELS` pixels."""
    if width * height > MAX_PIXELS:
        raise DataError(f"{path} has more than {MAX_PIXELS:,} pixels: cut it into tiles first")


def to_square_pixels(image: Image.Image, across: float, down: float, path: Path) -> Image.Image:
    """Return an RGB image resampled to square pixels of the shorter side (bilinear).

    Args:
        image: RGB image.
        across: Width of a pixel.
        down: Height of a pixel, in the unit of the width.
        path: The file, for messages.
    """
    side = min(across, down)
    size = (round(image.width * across / side), round(image.height * down / side))
    if size == image.size or max(across, down) <= (1 + _TOLERANCE) * side:
        return image
    check_pixels(path, *size)
    return image.resize(size, Image.Resampling.BILINEAR)
