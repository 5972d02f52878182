"""Sizes of images and of their pixels: the limit of pixels, resampling to square pixels, and pixel spacing in mm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mllm.dataset.readers.notices import warn_once
from mllm.dataset.readers.pixel_limit import count_next
from mllm.errors import DataError
from mllm.structures import Spacing

MAX_PIXELS = 178_956_970
"""Maximum number of pixels of an image, the limit at which Pillow refuses a file."""
MAX_RATIO = 50
"""Maximum ratio of the sides of a pixel; larger ratios mean a damaged header."""
_TOLERANCE = 1e-3
"""Relative difference of the sides of pixels that are regarded as square: rounding of the header."""
_DOUBTFUL_TOLERANCE = 1e-2
"""Relative difference of sides that is reported where programs often write meaningless values."""
_SPACING = "mllm_spacing"
"""Key of `Image.info` for the spacing of an image, with the size for which it holds."""


@dataclass(frozen=True)
class PixelSides:
    """Sides of the pixels of an image."""

    across: float
    """Width of a pixel."""
    down: float
    """Height of a pixel, in the unit of the width."""
    in_mm: bool
    """True if the sides are lengths in the patient in mm. False: only their ratio is known."""


def check_pixels(path: Path, width: float, height: float) -> None:
    """Raise `DataError` if an image has more than `MAX_PIXELS` pixels."""
    if width * height > MAX_PIXELS:
        raise DataError(f"{path} has more than {MAX_PIXELS:,} pixels: cut it into tiles first")


def warn_of_form(path: Path, across: float, down: float) -> None:
    """Warn of an image whose header states pixels that are not square but whose pixels are kept as they are stored.

    Args:
        path: The file.
        across: Width of a pixel in any unit.
        down: Height of a pixel in the same unit. Sides that are not positive and finite state nothing.
    """
    is_stated = all(math.isfinite(side) and side > 0 for side in (across, down))
    if is_stated and max(across, down) > (1 + _DOUBTFUL_TOLERANCE) * min(across, down):
        warn_once(
            path,
            "pixels that are not square",
            f"states that its pixels are not square (width : height = {across / down:.3g}): they are kept as they are "
            "stored; if its picture is distorted, resize the file",
        )


def with_spacing(image: Image.Image, sides: PixelSides, path: Path, square: bool) -> Image.Image:
    """Return an RGB image with its pixel spacing, which `spacing_of` returns.

    Args:
        image: RGB image.
        sides: Sides of its pixels.
        path: The file, for messages.
        square: True: resample to square pixels of the shorter side (bilinear).
    """
    result = _to_square_pixels(image, sides, path) if square else image
    if sides.in_mm:
        width, height = image.width * sides.across, image.height * sides.down
        result.info[_SPACING] = ((width / result.width, height / result.height), result.size)
    return result


def spacing_of(image: Image.Image) -> Spacing | None:
    """Return width and height of a pixel in mm as the reader of the file found them.

    None: the file has none, or the image has another size than the one that was read, so that it may be a crop.
    """
    spacing, size = image.info.get(_SPACING, (None, None))
    return spacing if size == image.size else None


def _to_square_pixels(image: Image.Image, sides: PixelSides, path: Path) -> Image.Image:
    side = min(sides.across, sides.down)
    size = (round(image.width * sides.across / side), round(image.height * sides.down / side))
    if size == image.size or max(sides.across, sides.down) <= (1 + _TOLERANCE) * side:
        return image
    check_pixels(path, *size)
    count_next(path, *size)
    return image.resize(size, Image.Resampling.BILINEAR)
