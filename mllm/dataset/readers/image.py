"""Reader of PNG, JPEG, TIFF, WebP and BMP files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mllm.dataset.readers.gray import Choice, Window, choose, display_range, find_window, scaled, to_image
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Gray modes of more than 8 bits; the conversion of PIL clips their values at 255."""
_PHOTOMETRIC = 262
"""TIFF tag PhotometricInterpretation; 0: zero is white."""


@READERS.register_module(name=[".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"])
def read(path: Path, *, page: Choice = "first", window: Window = None) -> list[Image.Image]:
    """Read an image file as RGB images.

    The EXIF orientation is applied, transparency is composited on black, palettes are resolved, color profiles are
    ignored. Gray images of 16 or 32 bits, integer or float, are scaled from their full range or from `window`; a
    constant image and NaN are black. Color images of 16 bits per channel keep the upper 8 bits.

    Args:
        path: The file.
        page: Pages of a TIFF or frames of an animation: an index from 0, a list, 'first', 'middle', 'last', 'all'.
        window: (center, width) in the gray values of the file; refused for color images.
    """
    limits = find_window(window, named=False)
    try:
        # From a path, Pillow maps uncompressed TIFFs with the size after the rotation, which scrambles their pixels.
        with path.open("rb") as file, Image.open(file) as image:
            count = 1 if isinstance(page, (str, int)) and page in ("first", 0) else _count_pages(image)
            images = []
            for index in choose(page, count, path, "page", "page"):
                image.seek(index)
                image.load()
                images.append(_to_rgb(image, limits, path))
            return images
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image: its content does not match its suffix") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: cut it into tiles first"
        ) from None
    except PermissionError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error


def _count_pages(image: Image.Image) -> int:
    count = 1
    while True:
        try:
            image.seek(count)
        except EOFError:
            image.seek(0)
            return count
        count += 1


def _to_rgb(image: Image.Image, limits: tuple[float, float] | None, path: Path) -> Image.Image:
    if image.mode in _DEEP or (limits is not None and image.mode == "L"):
        values = np.asarray(ImageOps.exif_transpose(image))
        unit = scaled(values, *(limits or display_range(values, path)))
        return to_image(1 - unit if _zero_is_white(image) else unit)
    if limits is not None:
        raise ConfigError(f"a window needs a gray image, but {path} is in color (mode {image.mode})")
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        opaque = Image.new("RGBA", upright.size, (0, 0, 0, 255))
        opaque.alpha_composite(upright.convert("RGBA"))
        upright = opaque
    result = upright.convert("RGB")
    # EXIF and text chunks may contain the name of a patient; only the pixels are returned.
    result.info = {}
    return result


def _zero_is_white(image: Image.Image) -> bool:
    """Return True for a TIFF of more than 8 bits that stores white as 0; PIL only inverts those of 8 bits."""
    from PIL.TiffImagePlugin import TiffImageFile

    return image.mode in _DEEP and isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
