"""Reader of PNG, JPEG, TIFF, WebP, BMP and GIF files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.geometry import check_pixels, warn_of_form
from mllm.dataset.readers.gray import Choice, choose, to_image
from mllm.dataset.readers.guarded import call_guarded
from mllm.dataset.readers.pixel_limit import check_selected, count_next
from mllm.dataset.readers.windows import Window, Windowing, find_window
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Gray modes of more than 8 bits; the conversion of PIL clips their values at 255."""
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "DIB", "GIF", "JPEG2000", "AVIF", "PPM")
"""Formats that are read, whatever the suffix. Pillow would start Ghostscript for others."""
_LINEAR = ("PNG", "JPEG", "MPO", "BMP", "DIB")
"""Formats whose decoders are certain to end in a time that is proportional to pixels and scans."""
_CHEAP_PIXELS = 1 << 26
"""Maximum number of pixels, times the scans of a progressive JPEG, that are decoded in this process."""
_SCAN = b"\xff\xda"
"""Marker of a scan of a JPEG."""
_TIFF_HEADER = 8
"""Size of the header of a TIFF file, in bytes."""
_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339
"""TIFF tags BitsPerSample, PhotometricInterpretation (0: zero is white), PlanarConfiguration (2: one plane for each
channel) and SampleFormat (1: unsigned, 2: signed, 3: float)."""
_RESOLUTIONS = ("dpi", "aspect", "resolution", "jfif_density")
"""Keys of `Image.info` with the numbers of pixels of one length across and down: in inches, or in an unknown unit."""
_SWAPPED = {"F;32BF": "F;32F", "I;16BS": "I;16S", "I;32BS": "I;32S"}
"""Modes of big-endian numbers in Pillow, and those of equal numbers in little endian."""
_JPEG_START = b"\xff\xd8\xff"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@READERS.register_module(name=[".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"])
def read(path: Path, *, page: Choice = "first", window: Window = None) -> list[Image.Image]:
    """Read an image file as RGB images.

    The EXIF orientation is applied, transparency is composited on black, palettes are resolved, color profiles are
    ignored. A resolution that differs across and down is reported, and the pixels are kept. Gray images of 16 or 32
    bits, integer or float, are scaled from their full range or from `window`; a constant image and NaN are black. Color
    images of 16 bits per channel keep the upper 8 bits.

    The first images of PNG, JPEG, BMP and uncompressed TIFF files up to 64 megapixels are decoded in this process,
    everything else in the guarded process.

    Args:
        path: The file.
        page: Pages of a TIFF or frames of an animation: an index from 0, a list, 'first', 'middle', 'last', 'all'.
        window: (center, width) in the gray values of the file, three of these for the channels red, green and blue, or
            'percentiles' (from the 0.5th to the 99.5th); refused for color images.
    """
    windowing = find_window(window, named=False)
    if _is_first(page):
        with _opened(path) as image:
            if _is_cheap(image, path):
                check_selected(path, 1, *image.size)
                return [_load(image, windowing, path)]
    return call_guarded(f"{__name__}:pages", path, page, window)


def _is_first(page: Choice) -> bool:
    return isinstance(page, (str, int)) and page in ("first", 0)


def _is_cheap(image: Image.Image, path: Path) -> bool:
    """Return True if the header bounds time and memory of decoding the first page."""
    if image.format not in _LINEAR and _uncompressed(image) is None:
        return False
    scans = path.read_bytes().count(_SCAN) if "progressive" in image.info else 1
    return image.width * image.height * scans <= _CHEAP_PIXELS


def _uncompressed(image: Image.Image) -> TiffImageFile | None:
    """Return the image if it is an uncompressed TIFF."""
    from PIL.TiffImagePlugin import TiffImageFile

    return image if isinstance(image, TiffImageFile) and image.info["compression"] == "raw" else None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image, and convert the errors of the block to `DataError`."""
    try:
        # From a path, Pillow maps uncompressed TIFFs with the size after the rotation, which scrambles their pixels.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise _unidentified(path) from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: cut it into tiles first"
        ) from None
    except PermissionError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error


def _unidentified(path: Path) -> DataError:
    """Return the error about a file that Pillow does not read."""
    with path.open("rb") as file:
        start = file.read(len(_TIFF_STARTS[0]))
    if start.startswith(_JPEG_START):
        return unusable(
            path,
            "is a JPEG that is damaged, or has a form that is not supported, such as 12 bits or JPEG-LS: save it as a "
            "PNG of 8 or 16 bits",
        )
    if start not in _TIFF_STARTS:
        return DataError(f"{path} is not an image: its content does not match its suffix")
    return unusable(
        path,
        "is a TIFF that is damaged, or whose pixels have a form that is not supported, such as floats of 16 or 64 bits "
        "or colors of more than 16 bits: save it with 8 or 16 bits for each channel, or gray floats of 32 bits",
    )


def pages(path: Path, page: Choice, window: Window) -> Iterator[Image.Image]:
    """Yield pages of an image file as RGB images; see `read`."""
    windowing = find_window(window, named=False)
    with _opened(path) as image:
        indices = choose(page, 1 if _is_first(page) else _count_pages(image), path, "page", "page")
        if image.format != "TIFF":  # whose pages can have different sizes
            check_selected(path, len(indices), *image.size)
        for index in indices:
            image.seek(index)
            check_pixels(path, *image.size)
            count_next(path, *image.size)
            yield _load(image, windowing, path)


def _load(image: Image.Image, windowing: Windowing, path: Path) -> Image.Image:
    if (uncompressed := _uncompressed(image)) is not None:
        _check_tiles(uncompressed, path)
    _check_planes(image, path)
    _correct_byte_order(image)
    image.load()
    _warn_of_pixels_that_are_not_square(image, path)
    return _to_rgb(image, windowing, path)


def _warn_of_pixels_that_are_not_square(image: Image.Image, path: Path) -> None:
    """Warn of a file that states different resolutions across and down.

    The pixels are not resampled, because programs often write meaningless resolutions.
    """
    pair = next((image.info[name] for name in _RESOLUTIONS if name in image.info), None)
    if pair is not None:
        across, down = map(float, pair)
        warn_of_form(path, down, across)


def _check_planes(image: Image.Image, path: Path) -> None:
    """Raise `DataError` for planes that Pillow scrambles: of more than 8 bits, or of gray and transparency."""
    if len(image.getbands()) == 1 or _tiff_tag(image, _PLANAR) != 2:
        return
    if _tiff_tag(image, _BITS) != 8:
        raise unusable(path, "is a TIFF with a plane of more than 8 bits for each color: save its pixels interleaved")
    if image.mode == "LA":
        raise unusable(path, "is a TIFF with a plane for gray and one for transparency: save its pixels interleaved")


def _correct_byte_order(image: Image.Image) -> None:
    """Let Pillow read compressed big-endian numbers in the order of this machine, in which libtiff returns them.

    Pillow does so for unsigned numbers of 16 bits alone.
    """
    from PIL.TiffImagePlugin import TiffImageFile

    if not isinstance(image, TiffImageFile) or sys.byteorder != "little":
        return
    for number, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple) and tile.args[0] in _SWAPPED:
            image.tile[number] = tile._replace(args=(_SWAPPED[tile.args[0]], *tile.args[1:]))


def _check_tiles(image: TiffImageFile, path: Path) -> None:
    """Raise `DataError` if the strips or tiles of an uncompressed TIFF do not cover it; Pillow leaves gaps black."""
    areas: Counter[str] = Counter()
    for tile in image.tile:
        assert tile.extents is not None and isinstance(tile.args, tuple)
        left, top, right, bottom = tile.extents
        # The first argument is the mode of the decoder, which differs between the planes of a file.
        areas[tile.args[0]] += (right - left) * (bottom - top)
        if tile.offset < _TIFF_HEADER:
            raise DataError(f"{path} is damaged: its pixels begin within the header of the file")
    if any(area < image.width * image.height for area in areas.values()):
        raise DataError(
            f"{path} is truncated or damaged: its strips do not cover {image.width} x {image.height} pixels"
        )


def _count_pages(image: Image.Image) -> int:
    count = 1
    while True:
        try:
            image.seek(count)
        except EOFError:
            image.seek(0)
            return count
        count += 1


def _to_rgb(image: Image.Image, windowing: Windowing, path: Path) -> Image.Image:
    number_type = _number_type(image)
    if image.mode in _DEEP or number_type is not None or (windowing.is_chosen and image.mode == "L"):
        values = np.asarray(ImageOps.exif_transpose(image))
        unit = windowing.apply(values if number_type is None else values.view(number_type), path)
        return to_image(1 - unit if _zero_is_white(image) else unit)
    if windowing.is_chosen:
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


def _number_type(image: Image.Image) -> type[np.int8 | np.uint32] | None:
    """Return the type of the numbers of a gray TIFF that Pillow returns with the other sign; None for other images."""
    if image.mode == "L" and _tiff_tag(image, _SAMPLE_FORMAT) == 2 and _tiff_tag(image, _BITS) == 8:
        return np.int8
    if image.mode == "I" and _tiff_tag(image, _SAMPLE_FORMAT) != 2 and _tiff_tag(image, _BITS) == 32:
        return np.uint32
    return None


def _zero_is_white(image: Image.Image) -> bool:
    """Return True for a TIFF of more than 8 bits that stores white as 0; PIL only inverts those of 8 bits."""
    return image.mode in _DEEP and _tiff_tag(image, _PHOTOMETRIC) == 0


def _tiff_tag(image: Image.Image, tag: int) -> object:
    """Return the first value of a tag of a TIFF; None for other images and absent tags."""
    from PIL.TiffImagePlugin import TiffImageFile

    value = image.tag_v2.get(tag) if isinstance(image, TiffImageFile) else None
    return value[0] if isinstance(value, tuple) else value
