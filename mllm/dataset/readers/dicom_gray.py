"""Gray values of DICOM frames: rescale, VOI LUT, window and padding. Impossible values of a header are ignored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm.dataset.readers.dicom_bits import padding_mask
from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.gray import display_range, is_threshold, percentile_range, scaled
from mllm.dataset.readers.header_fields import TRANSFORM_TAGS, shown
from mllm.dataset.readers.notices import warn_once
from mllm.dataset.readers.windows import Windowing, find_window

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_IMPOSSIBLE_LUT = "that is constant, incomplete or shorter than its descriptor"


def to_values(stored: np.ndarray, header: Dataset, path: Path, windowing: Windowing) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a gray frame after the modality LUT or rescale, [H, W], and the mask of its padding.

    An impossible rescale is removed from the header, with a warning, and a blank one without.

    Raises:
        DataError: The window is in Hounsfield units, and the frame is not.
    """
    from pydicom.pixels import apply_modality_lut

    padding = padding_mask(stored, header)
    drop_impossible_rescale(header, path)
    if windowing.in_hounsfield and not _is_in_hounsfield(header):
        fault = f"is not a CT in Hounsfield units, which window='{windowing.in_hounsfield}' requires"
        raise unusable(path, f"{fault}; use window=(center, width)")
    if header.get("ModalityLUTSequence"):
        # pydicom reads no table of 9 to 15 bits.
        lut = _read_lut(header.ModalityLUTSequence[0], header)
        assert lut is not None, "an impossible table is removed before"
        return lut.apply(stored), padding
    return apply_modality_lut(stored, header), padding


def _is_in_hounsfield(header: Dataset) -> bool:
    """Return True for a CT with slope and intercept. Impossible ones are removed before."""
    return header.get("Modality") == "CT" and _has_rescale(header)


def _has_rescale(header: Dataset) -> bool:
    """Return True if the header has a slope and an intercept. Impossible ones are removed before."""
    return len(_rescale_tags(header)) == 2


def _rescale_tags(header: Dataset) -> list[str]:
    """Return which of the slope and the intercept have a value."""
    return [name for name in ("RescaleSlope", "RescaleIntercept") if header.get(name) not in (None, "")]


def drop_impossible_rescale(header: Dataset, path: Path) -> None:
    """Delete an impossible rescale or modality LUT, and the window, whose unit is unknown without it.

    A slope of 0, one without an intercept or the other way round, numbers that are not finite, and tables that are
    constant or too short are impossible.
    """
    if header.get("ModalityLUTSequence"):
        if _read_lut(header.ModalityLUTSequence[0], header) is not None:
            return
        fault = f"a modality LUT {_IMPOSSIBLE_LUT}"
    elif _has_rescale(header):
        slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
        if slope != 0 and math.isfinite(slope) and math.isfinite(intercept):
            return
        fault = f"RescaleSlope {shown(header, 'RescaleSlope')} and RescaleIntercept {shown(header, 'RescaleIntercept')}"
        fault += ", which is impossible"
    elif present := _rescale_tags(header):
        fault = f"{present[0]} alone, without the other part of a rescale"
    else:
        for name in ("RescaleSlope", "RescaleIntercept"):
            header.pop(name, None)  # pydicom would compute with an element of blanks
        return
    for name in TRANSFORM_TAGS:
        if name in header:
            del header[name]
    warn_once(path, "rescale", f"has {fault}: its rescale and window are ignored")


def apply_voi(values: np.ndarray, header: Dataset, padding: np.ndarray, path: Path) -> np.ndarray:
    """Map values to [0, 1] by the first VOI LUT or window of the file, else by the default of the modality.

    A LUT whose entries contradict its bits is scaled to its largest entry. An impossible LUT or window is ignored.

    Args:
        values: Values after the modality LUT, [H, W].
        header: Header of the frame.
        padding: Mask of pixels that do not count, [H, W].
        path: The file, for warnings.
    """
    unit = _apply_lut(values, header, path) if header.get("VOILUTSequence") else None
    if unit is None:
        unit = _apply_window(values, header, padding, path)
    return scaled(values, *default_range(values[~padding], header, path)) if unit is None else unit


def default_range(values: np.ndarray, header: Dataset, path: Path) -> tuple[float, float]:
    """Return the range that is shown of a frame without a window.

    It is -1024 to 1024 for CT in Hounsfield units, so that a tissue has the same gray value in all slices. MR has no
    unit, and single bright pixels in many images: it is shown from the 0.5th to the 99.5th percentile.
    """
    if _is_in_hounsfield(header):
        return find_window("wide").limits[0]
    return percentile_range(values) if header.get("Modality") == "MR" else display_range(values, path)


def _apply_lut(values: np.ndarray, header: Dataset, path: Path) -> np.ndarray | None:
    """Return the values of a LUT in [0, 1]; None if it is impossible (PS3.3 C.11.2.1.1)."""
    lut = _read_lut(header.VOILUTSequence[0], header)
    if lut is None:
        warn_once(path, "voi lut", f"has a VOI LUT {_IMPOSSIBLE_LUT}: it is ignored")
        return None
    white, largest = 2**lut.bits - 1, int(lut.entries.max())
    # A table that ends above its white, or below half of it, was written with another number of bits.
    if not white / 2 < largest <= white:
        warn_once(
            path,
            "voi lut",
            f"has a VOI LUT of {lut.bits} bits with entries up to {largest}: this entry is shown as white",
        )
        white = largest
    return np.asarray(lut.apply(values) / white)


@dataclass(frozen=True)
class _LookupTable:
    """Table from values of pixels to other values (PS3.3 C.11.1.1.1)."""

    entries: np.ndarray
    """Values, [E]."""
    first: int
    """Value of a pixel that the first entry replaces; smaller ones also get the first, larger ones the last entry."""
    bits: int
    """Number of bits of the entries."""

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the entries of values."""
        indices = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[indices])


def _read_lut(table: Dataset, header: Dataset) -> _LookupTable | None:
    """Return the table of an item of a sequence; None if it is constant, incomplete or shorter than its descriptor."""
    descriptor, data = table.get("LUTDescriptor"), table.get("LUTData")
    if descriptor is None or data is None or len(descriptor) != 3:
        return None
    count, first, bits = (int(number) for number in descriptor)
    entries = _table_entries(data, count or 65536, header)
    if entries is None or entries.min() == entries.max():
        return None
    return _LookupTable(entries, first, bits)


def _table_entries(data: bytes | list[int] | int, entries: int, header: Dataset) -> np.ndarray | None:
    """Return the entries of a LUT; None if it has fewer than `entries`."""
    if not isinstance(data, bytes):
        lut = np.atleast_1d(np.asarray(data))
    elif entries <= len(data) <= entries + 1:
        # Entries of 8 bits may be packed, padded to an even length.
        lut = np.frombuffer(data, "u1")
    else:
        order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
        lut = np.frombuffer(data, f"{order}u2")
    return lut[:entries] if len(lut) >= entries else None


def _apply_window(values: np.ndarray, header: Dataset, padding: np.ndarray, path: Path) -> np.ndarray | None:
    """Return the values in the first window of a header, in [0, 1]; None if there is none or it is impossible."""
    # An element of blanks has the value ''.
    if not all(header.get(name) or header.get(name) == 0 for name in ("WindowCenter", "WindowWidth")):
        return None
    # Several windows are alternative views; the first is the default.
    center, width = (float(np.atleast_1d(header[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        numbers = f"WindowCenter {shown(header, 'WindowCenter')} and WindowWidth {shown(header, 'WindowWidth')}"
        warn_once(path, "window", f"has {numbers}, which is impossible: its window is ignored")
        return None
    if is_threshold(values[~padding], width):
        # LINEAR has no width below 1 (PS3.3 C.11.2.1.2.1); a larger one may be a threshold.
        is_ignored = width < 1
        end = "its window is ignored" if is_ignored else "set window=(center, width) to choose the range"
        fault = f"has WindowWidth {shown(header, 'WindowWidth')}, with which nearly all pixels are black or white"
        warn_once(path, "window", f"{fault}: {end}")
        if is_ignored:
            return None
    function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function == "SIGMOID":
        # The limit of the exponent prevents an overflow; its sigmoid is 0 or 1 in double precision.
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function == "LINEAR" and _has_steps_of_one(values, width):
        # By PS3.3 C.11.2.1.2.1 the width counts the steps between integers, not the integers.
        center, width = center - 0.5, width - 1
    half = max(width / 2, 1e-6)
    return scaled(values, center - half, center + half)


def _has_steps_of_one(values: np.ndarray, width: float) -> bool:
    """Return False if LINEAR would give an empty window for real numbers, so that LINEAR_EXACT must be meant."""
    if width < 1:
        return False
    is_fraction = values.dtype.kind == "f" and bool((values != np.rint(values)).any())
    return not is_fraction or width > 1
