"""True boxes, points and masks in the fields of a row, for pictures of predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from mllm.coco_masks import decode_runs
from mllm.dataset.tables.values import is_empty
from mllm.errors import DataError
from mllm.structures import Mark

BOXES = ("boxes", "reference_boxes", "bbox", "box")
"""Fields with boxes x1 y1 x2 y2 in pixels: one box, or a list of boxes. The first that a row has is read."""
POINTS = ("points", "reference_points", "point")
"""Fields with points x y in pixels: one point, or a list of points."""
MASKS = ("masks", "reference_masks")
"""Fields with a list of masks as run lengths of COCO."""
INDICES = ("box_images", "reference_box_images")
"""Fields with the index of the image of each box, from 0."""


def true_marks(row: Mapping[str, Any], images: Sequence[Image]) -> list[Mark]:
    """Return the marks in the fields of a row, which are named as in `predictions.jsonl`.

    Raises:
        DataError: A field has another form, or a box exceeds its image.
    """
    field, boxes = _numbers(row, BOXES, 4)
    _, points = _numbers(row, POINTS, 2)
    _, numbers = _first(row, INDICES)
    indices = numbers if isinstance(numbers, list) and len(numbers) == len(boxes) else [0] * len(boxes)
    marks = []
    for (x1, y1, x2, y2), index in zip(boxes, indices, strict=True):
        if not isinstance(index, int) or not 0 <= index < len(images):
            raise DataError(f"field '{field}' has a box in image {index}, and the row has {len(images)} images")
        width, height = images[index].size
        if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
            raise DataError(
                f"field '{field}' {[x1, y1, x2, y2]} is not a box in its image of {width} x {height} pixels: write "
                "x1 y1 x2 y2 in pixels, or omit --draw"
            )
        marks.append(Mark(box=(x1, y1, x2, y2), image=index))
    return marks + [Mark(point=(x, y)) for x, y in points] + [Mark(mask=mask) for mask in _masks(row)]


def _first(row: Mapping[str, Any], fields: Sequence[str]) -> tuple[str, Any]:
    """Return the first of some fields that a row has with a value, and the value."""
    return next(((field, row[field]) for field in fields if not is_empty(row.get(field))), (fields[0], None))


def _numbers(row: Mapping[str, Any], fields: Sequence[str], count: int) -> tuple[str, list[tuple[float, ...]]]:
    """Return the name and the value of the first of some fields: groups of `count` finite numbers."""
    field, value = _first(row, fields)
    if value is None:
        return field, []
    groups = value if isinstance(value, list) and all(isinstance(group, list) for group in value) else [value]
    try:
        numbers = [tuple(float(number) for number in group) for group in groups]
    except (TypeError, ValueError):
        numbers = [()]
    if any(len(group) != count or not all(map(math.isfinite, group)) for group in numbers):
        form = "x1 y1 x2 y2" if count == 4 else "x y"
        raise DataError(f"field '{field}' must be {form} in pixels, or a list of these: correct it, or omit --draw")
    return field, numbers


def _masks(row: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the masks of a row, [H, W] bool."""
    field, value = _first(row, MASKS)
    try:
        return [decode_runs(mask) for mask in value or ()]
    except (TypeError, ValueError):
        raise DataError(
            f"field '{field}' must be a list of masks as run lengths of COCO: correct it, or omit --draw"
        ) from None
