"""PNG, JPEG, TIFF, WebP and BMP files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mllm.dataset.readers.gray import Choice, Window, choose, find_window, full_range, scaled, to_image
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Gray modes of more than 8 bits, which PIL's own conversion clips at 255 without a word."""
_PHOTOMETRIC = 262
"""The TIFF tag that says what zero means: 0 is white."""


@READERS.register_module(name=[".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"])
def read(path: Path, *, page: Choice = "first", window: Window = None) -> list[Image.Image]:
    """Read an image file as RGB pictures.

    The orientation in EXIF is applied, transparency is composited on black, palettes are looked up; color profiles
    are left alone. Gray images of 16 or 32 bits, integer or float, are scaled from their full range (one that is
    constant is black) or from `window`; NaN is black. Color of 16 bits a channel keeps its upper 8.

    `page` chooses pages of a TIFF or frames of an animation: an index from 0, a list, 'first', 'middle', 'last', 'all'.
    `window` is (center, width) in the file's own gray values; it is refused for color.
    """
    limits = find_window(window, named=False)
    try:
        with Image.open(path) as image:
            count = 1 if isinstance(page, (str, int)) and page in ("first", 0) else _count_pages(image)
            pictures = []
            for index in choose(page, count, path, "page", "page"):
                image.seek(index)
                image.load()
                pictures.append(_to_rgb(image, limits, path))
            return pictures
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image: it has the name of one but not its contents") from None
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
        unit = scaled(values, *(limits or full_range(values)))
        return to_image(1 - unit if _zero_is_white(image) else unit)
    if limits is not None:
        raise ConfigError(f"a window needs a gray image, and {path} is in color (mode {image.mode})")
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        opaque = Image.new("RGBA", upright.size, (0, 0, 0, 255))
        opaque.alpha_composite(upright.convert("RGBA"))
        upright = opaque
    picture = upright.convert("RGB")
    # What PIL remembers of the file (EXIF, text chunks) can hold a name; only the pixels go on.
    picture.info = {}
    return picture


def _zero_is_white(image: Image.Image) -> bool:
    """Whether a deep TIFF stores white as 0; PIL turns those of 8 bits itself, and only those."""
    from PIL.TiffImagePlugin import TiffImageFile

    return image.mode in _DEEP and isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
