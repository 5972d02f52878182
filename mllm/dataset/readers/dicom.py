"""Reader of DICOM files. Only pixel data and their transforms are read, nothing that identifies a patient."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mllm.dataset.readers.dicom_frames import count_frames, decode, read_header
from mllm.dataset.readers.dicom_gray import apply_voi, to_values
from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.geometry import MAX_RATIO, PixelSides, with_spacing
from mllm.dataset.readers.gray import Choice, choose, to_image
from mllm.dataset.readers.header_fields import (
    GEOMETRY_TAGS,
    PATIENT_SPACING,
    REGIONS,
    SPACING_TAGS,
    TAGS,
    TRANSFORM_TAGS,
)
from mllm.dataset.readers.notices import warn_once
from mllm.dataset.readers.pixel_limit import check_selected
from mllm.dataset.readers.windows import Window, Windowing, find_window
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_FRAME_GROUPS = (
    *("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence"),
    *("PlanePositionSequence", "PlaneOrientationSequence"),
)
"""Functional groups with transforms, pixel sizes and places of frames (PS3.3 C.7.6.16)."""
_REGION = (
    *("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1"),
    *("PhysicalUnitsXDirection", "PhysicalUnitsYDirection", "PhysicalDeltaX", "PhysicalDeltaY"),
)
"""Elements of an ultrasound region: its corners in pixels, and the units and lengths of a pixel (PS3.3 C.8.5.5)."""
_TISSUE, _CENTIMETERS = 1, 3
"""Values of RegionSpatialFormat and of the units."""

_is_reading: ContextVar[bool] = ContextVar("is_reading", default=False)
logging.getLogger("pydicom").addFilter(lambda record: not _is_reading.get())


@READERS.register_module(name=[".dcm", ".dicom", ".ima", ".dcm.gz"])
def read(path: Path, *, frames: Choice = "first", window: Window = None, square: bool = True) -> list[Image.Image]:
    """Read frames of a DICOM file, which may be compressed by gzip, as RGB images.

    Gray values are transformed by the modality LUT or rescale, then by `window`, else by the first VOI LUT or window
    of the file, else by the default of the modality: CT in Hounsfield units from -1024 to 1024, MR from the 0.5th to
    the 99.5th percentile of the frame, others from the full range of the frame. MONOCHROME1 is inverted and padding is
    black. RGB, YBR and palette images are converted to RGB. Overlays are ignored. Impossible values of the header are
    ignored with a warning. Pixels that are not square are resampled to squares of the shorter side (bilinear), so boxes
    and masks are in pixels of the resampled image.

    Args:
        path: The file.
        frames: Indices from 0: an index, a list, 'first', 'middle', 'last' or 'all'.
        window: Name of a CT window (`WINDOWS` and `COLOR_WINDOWS` in `windows.py`; only for CT in Hounsfield units),
            'percentiles' (from the 0.5th to the 99.5th), (center, width) in the units after rescaling, or three
            names or pairs for the channels red, green and blue.
        square: False: return the stored pixels, for boxes and masks that refer to them.

    Raises:
        DataError: The file cannot be decoded. The message contains no value of the file except its SOP class and
            encoding.
    """
    windowing = find_window(window)
    with damage_refused(path):
        return _read(path, frames, windowing, square)


@contextmanager
def damage_refused(path: Path) -> Iterator[None]:
    """Convert the errors of pydicom for a damaged file, which have many types, to `DataError`.

    Its warnings, which it also logs, are hidden, because they contain values of the file.

    Raises:
        ConfigError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError:
        fault = "is a DICOM file, but pydicom is not installed: pip install -e .[dicom]"
        raise ConfigError(f"{path} {fault}", f"its file {fault}") from None
    token = _is_reading.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ConfigError, DataError, PermissionError):
        raise
    except pydicom.errors.InvalidDicomError:
        raise unusable(path, "is not a DICOM file: it does not begin with the DICOM preamble") from None
    except Exception as error:  # noqa: BLE001
        # pydicom and its decoders raise many types, with values of the file in the message: hence no exception chain.
        kind = type(error).__name__
        raise unusable(path, f"cannot be decoded: its header or its pixels are damaged ({kind})") from None
    finally:
        _is_reading.reset(token)


def _read(path: Path, frames: Choice, windowing: Windowing, square: bool) -> list[Image.Image]:
    header = read_header(path)
    count = count_frames(header, path)
    indices = choose(frames, count, path, "frames", "frame")
    check_selected(path, len(indices), int(header.Columns), int(header.Rows))
    images = []
    for index, stored in zip(indices, decode(path, header, indices), strict=True):
        frame = frame_header(header, index)
        image = _to_rgb(stored, frame, path, windowing)
        images.append(_with_spacing(image, frame, path, square))
    return images


def _with_spacing(image: Image.Image, header: Dataset, path: Path, square: bool) -> Image.Image:
    """Return the image with its spacing and, if `square`, with square pixels.

    A warning says that the image was resampled, because boxes may refer to the stored pixels.
    """
    result = with_spacing(image, pixel_sides(header, path), path, square)
    if result.size != image.size:
        before, after = (f"{width} x {height}" for width, height in (image.size, result.size))
        message = f"has pixels that are not square and is resampled from {before} to {after}: boxes refer to "
        warn_once(
            path, "resampled", message + "the result, or to the stored pixels with the reader option square=False"
        )
    return result


def frame_header(header: Dataset, index: int) -> Dataset:
    """Return the header with the functional groups of all frames and of this frame merged in (PS3.3 C.7.6.16)."""
    from pydicom.dataset import Dataset

    frame = Dataset()
    frame.file_meta = header.file_meta
    for name in TAGS:
        if name in header and not name.endswith(("PixelData", "FunctionalGroupsSequence")):
            frame[name] = header[name]
    groups = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    groups += list(header.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    for group in groups:
        for macro in _FRAME_GROUPS:
            for item in group.get(macro) or []:
                for name in (*TRANSFORM_TAGS, *SPACING_TAGS, *GEOMETRY_TAGS):
                    if name in item:
                        frame[name] = item[name]
    return frame


def pixel_sides(header: Dataset, path: Path) -> PixelSides:
    """Return the sides of a pixel; (1, 1), not in mm, if the header has none or impossible ones.

    PixelSpacing and the regions of ultrasound are lengths in the patient. ImagerPixelSpacing is one at the detector, to
    which a radiograph is enlarged, and NominalScannedPixelSpacing one on a film.
    """
    for name in SPACING_TAGS:
        if header.get(name) is not None:
            # All elements name the distance of rows first, which is the height of a pixel.
            sides = [float(side) for side in np.atleast_1d(header[name].value)]
            if len(sides) == 2 and _is_possible(sides):
                return PixelSides(sides[1], sides[0], in_mm=name == PATIENT_SPACING)
            warn_once(path, "pixel size", f"has an impossible {name}: it is ignored")
        if name == PATIENT_SPACING and (found := _sides_of_regions(header, path)) is not None:
            return found
    return PixelSides(1.0, 1.0, in_mm=False)


def _is_possible(sides: Sequence[float]) -> bool:
    return all(math.isfinite(side) and side > 0 for side in sides) and max(sides) <= MAX_RATIO * min(sides)


def _sides_of_regions(header: Dataset, path: Path) -> PixelSides | None:
    """Return the sides of a pixel in the regions of tissue of an ultrasound image; None if they are unknown.

    Regions of another unit than centimeters, such as those of spectra and M-modes, are ignored. A region that is not
    within the image is that of an image before it was resized, so its pixels are not those of this image.
    """
    found: list[PixelSides] = []
    for region in header.get(REGIONS) or []:
        values = [region.get(name) for name in _REGION]
        if region.get("RegionSpatialFormat") != _TISSUE or any(not isinstance(value, (int, float)) for value in values):
            continue
        left, top, right, bottom, across_unit, down_unit, across, down = map(float, values)
        if (across_unit, down_unit) != (_CENTIMETERS, _CENTIMETERS):
            continue
        if not (0 <= left < right <= header.Columns and 0 <= top < bottom <= header.Rows):
            warn_once(
                path,
                "region outside the image",
                "has an ultrasound region that is not within the image, which was probably resized: the size of its "
                "pixels is unknown, and they are regarded as square",
            )
            return None
        if not _is_possible((abs(across), abs(down))):
            warn_once(path, "pixel size", "has an ultrasound region with pixels of an impossible size: it is ignored")
            continue
        found.append(PixelSides(10 * abs(across), 10 * abs(down), in_mm=True))
    if not found:
        return None
    if all(side.across == found[0].across and side.down == found[0].down for side in found):
        return found[0]
    if all(math.isclose(side.across / side.down, found[0].across / found[0].down, rel_tol=1e-3) for side in found):
        return PixelSides(found[0].across, found[0].down, in_mm=False)
    warn_once(
        path,
        "regions",
        "has ultrasound regions whose pixels have different forms: they are regarded as square; crop it to one region",
    )
    return None


def _to_rgb(stored: np.ndarray, header: Dataset, path: Path, windowing: Windowing) -> Image.Image:
    from pydicom.pixels import apply_color_lut

    if header.PhotometricInterpretation == "PALETTE COLOR" or stored.ndim == 3:
        if windowing.is_chosen:
            raise unusable(path, "is in color, but a window needs a gray image")
        bits = header.BitsStored
        if stored.ndim == 2:
            stored = apply_color_lut(stored, header)
            bits = stored.dtype.itemsize * 8
        return _color_image(stored, bits, path)
    values, padding = to_values(stored, header, path, windowing)
    unit = windowing.apply(values, path, ~padding) if windowing.is_chosen else apply_voi(values, header, padding, path)
    if header.PhotometricInterpretation == "MONOCHROME1":
        unit = 1 - unit
    unit[padding] = 0
    return to_image(unit)


def _color_image(stored: np.ndarray, bits: int, path: Path) -> Image.Image:
    """Return an [H, W, 3] array of unsigned values as an image. Values above those of `bits` are white."""
    white = 2**bits - 1
    if stored.size and stored.max() > white:
        warn_once(path, "bits", f"has values above those of its {bits} bits (BitsStored): they are white")
    eight = stored if stored.dtype == np.uint8 and bits == 8 else np.rint(np.minimum(stored, white) * (255 / white))
    return Image.fromarray(eight.astype(np.uint8)).convert("RGB")
