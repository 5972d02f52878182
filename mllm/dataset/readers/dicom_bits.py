"""Bits of DICOM pixels beyond those that the header says are stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm.dataset.readers.notices import warn_once

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

OVERLAY_BITS = tuple((group << 16) + 0x0102 for group in range(0x6000, 0x6020, 2))
"""Tags of OverlayBitPosition: in old files the bit of a pixel that is its overlay."""


def corrected_bits(stored: np.ndarray, header: Dataset, path: Path) -> np.ndarray:
    """Return the values of a frame, of whose bits BitsStored are used.

    The others are removed if they are an overlay, and follow from the sign if they are 0 in a signed frame. Otherwise,
    values above those of BitsStored show that it is wrong, except in padding. They are returned unchanged with a
    warning, because without their upper bits white pixels would become black.

    Args:
        stored: Values as they are in the file, [H, W], or colors [H, W, 3], which are returned unchanged.
        header: Header of the file.
        path: The file, for warnings.
    """
    if stored.ndim == 3 or stored.dtype.kind == "f" or (unused := 8 * stored.dtype.itemsize - header.BitsStored) <= 0:
        return stored
    corrected = (stored << unused) >> unused
    is_changed = corrected != stored
    if not is_changed.any():
        return stored
    has_upper_bits = (stored.view(f"{stored.dtype.byteorder}u{stored.dtype.itemsize}") >> header.BitsStored) != 0
    if not has_upper_bits.any() or any(header[tag].value for tag in OVERLAY_BITS if tag in header):
        return corrected
    if not (is_changed & ~padding_mask(stored, header)).any():
        return stored
    warn_once(path, "bits", f"has values above those of its {header.BitsStored} bits (BitsStored), which is ignored")
    return stored


def padding_mask(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Return the mask of padding pixels (PS3.3 C.7.5.1.1.2), [H, W] bool."""
    first = header.get("PixelPaddingValue")
    if first is None or stored.dtype.kind == "f":
        return np.zeros(stored.shape, bool)
    last = header.get("PixelPaddingRangeLimit")
    # Files often store the value of a signed image as unsigned, or vice versa: compare the bits.
    ends = np.asarray([first, first if last is None else last]).astype(stored.dtype)
    return (stored >= ends.min()) & (stored <= ends.max())
