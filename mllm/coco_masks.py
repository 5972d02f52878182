"""Decoding of masks of COCO: polygons, and run lengths, compressed or not (pycocotools, `maskApi.c`).

pycocotools decodes without checks: damaged run lengths are written beyond the mask, and a polygon far outside its image
takes all memory.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mllm.structures import UndecodedMask

_MAX_PIXELS = 178_956_970
"""Maximum number of pixels of a mask, as of an image."""
_ZERO = 48
"""Character code of the value 0 in compressed run lengths."""


def decode_runs(runs: Mapping[str, Any]) -> np.ndarray:
    """Return the mask [H, W] bool of run lengths `{"size": [H, W], "counts": ...}`.

    Raises:
        ValueError: They have another form, or the runs do not fill the mask.
    """
    height, width, counts = _checked_runs(runs)
    # Runs alternate between background and mask, column by column.
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(width, height).T


def inspect_runs(runs: Mapping[str, Any]) -> UndecodedMask:
    """Return the facts of the mask of run lengths; raises as `decode_runs` does."""
    height, width, counts = _checked_runs(runs)
    return UndecodedMask(height, width, array("q", counts).tobytes())


def _checked_runs(runs: Mapping[str, Any]) -> tuple[int, int, Sequence[int]]:
    """Return height and width of a mask, and its run lengths, which fill it."""
    try:
        height, width = runs["size"]
        counts = runs["counts"]
    except (TypeError, KeyError, ValueError):
        raise ValueError("run lengths need 'size' [height, width] and 'counts'") from None
    if not all(type(side) is int and side >= 0 for side in (height, width)) or height * width > _MAX_PIXELS:
        raise ValueError("'size' must be [height, width] in pixels")
    if isinstance(counts, (str, bytes)):
        counts = _decompress(counts.encode("utf-8") if isinstance(counts, str) else counts)
    if not isinstance(counts, Sequence) or {*map(type, counts)} - {int} or min(counts, default=0) < 0:
        raise ValueError("'counts' must be a text or a list of numbers of pixels")
    if sum(counts) != height * width:
        raise ValueError(f"the runs have {sum(counts)} pixels, and the mask {height * width}")
    return height, width, counts


def decode_polygons(segmentation: Any, width: int, height: int) -> np.ndarray:
    """Return the mask [H, W] bool of polygons `[[x, y, x, y, ...], ...]`, or of one polygon, in pixels.

    Raises:
        ValueError: They have another form, or a point is further outside the image than the image is large.
    """
    from pycocotools import mask as coco_mask

    polygons = [polygon.tolist() for polygon in _checked_polygons(segmentation, width, height)]
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return np.asarray(coco_mask.decode(runs)).astype(bool)


def inspect_polygons(segmentation: Any, width: int, height: int) -> UndecodedMask:
    """Return the facts of the mask of polygons; raises as `decode_polygons` does."""
    polygons = _checked_polygons(segmentation, width, height)
    x, y = [polygon[0::2] for polygon in polygons], [polygon[1::2] for polygon in polygons]
    bounds = (min(map(min, x)), min(map(min, y)), max(map(max, x)), max(map(max, y)))
    return UndecodedMask(height, width, b"|".join(polygon.tobytes() for polygon in polygons), bounds)


def _checked_polygons(segmentation: Any, width: int, height: int) -> list[array[float]]:
    """Return polygons x y x y ... in pixels."""
    if not isinstance(segmentation, (list, tuple)) or not segmentation:
        raise ValueError("it must be a list of polygons")
    polygons = segmentation if isinstance(segmentation[0], (list, tuple)) else [segmentation]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs at least three points")
    points = [array("d", map(float, polygon)) for polygon in polygons]
    for polygon in points:
        if not (_is_near(polygon[0::2], width) and _is_near(polygon[1::2], height)):
            sides = (width, height) * (len(polygon) // 2)
            pairs = zip(polygon, sides, strict=True)
            number = next(number for number, side in pairs if not -side <= number <= 2 * side)
            raise ValueError(f"a polygon has the coordinate {number:g}, and the image {width} x {height} pixels")
    return points


def _is_near(numbers: array[float], side: int) -> bool:
    """Return True if coordinates are finite and not further outside the image than the image is large."""
    return math.isfinite(sum(numbers)) and -side <= min(numbers) and max(numbers) <= 2 * side


def _decompress(text: bytes) -> list[int]:
    """Return the counts of compressed run lengths: differences to the last count but one, in groups of 5 bits."""
    counts: list[int] = []
    value = shift = 0
    for code in text:
        bits = code - _ZERO
        if not 0 <= bits < 64:
            raise ValueError("'counts' has a character that compressed run lengths do not have")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue  # further groups follow
        if bits & 16:
            value -= 1 << shift  # negative
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("'counts' is truncated")
    return counts
