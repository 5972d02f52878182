"""How much boxes and masks overlap, and which of them belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from mllm.structures import Answer, Mark

Item = TypeVar("Item")


class Box(NamedTuple):
    """A box in one of a sample's images."""

    image: int
    corners: tuple[float, float, float, float]
    """x1 y1 x2 y2 in pixels."""


def box_of(mark: Mark) -> Box | None:
    """The mark's box, or the smallest around its mask; None for a point and for a mask without a pixel."""
    if mark.box is not None:
        return Box(mark.image, mark.box)
    if mark.mask is None or not mark.mask.any():
        return None
    columns, rows = np.flatnonzero(mark.mask.any(axis=0)), np.flatnonzero(mark.mask.any(axis=1))
    return Box(mark.image, (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)))


def boxes_of(answer: Answer) -> list[Box]:
    """The boxes that an answer names, in its order."""
    return [box for box in map(box_of, answer.marks) if box is not None]


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union, in [0, 1]; 0 in different images, and where neither has an area."""
    if one.image != other.image:
        return 0.0
    left, top = (max(one.corners[i], other.corners[i]) for i in (0, 1))
    right, bottom = (min(one.corners[i], other.corners[i]) for i in (2, 3))
    common = max(0.0, right - left) * max(0.0, bottom - top)
    union = area(one) + area(other) - common
    return common / union if union > 0 else 0.0


def area(box: Box) -> float:
    """Pixels in a box."""
    x1, y1, x2, y2 = box.corners
    return max(0.0, x2 - x1) * max(0.0, y2 - y1)


def greedy_overlaps(found: Sequence[Item], wanted: Sequence[Item], iou: Callable[[Item, Item], float]) -> list[float]:
    """The overlaps of pairs made one to one, the pair that overlaps most first; pairs that do not overlap are none."""
    pairs = [(iou(one, other), i, j) for i, one in enumerate(found) for j, other in enumerate(wanted)]
    taken: set[int] = set()
    paired: set[int] = set()
    overlaps = []
    for value, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if value > 0 and i not in taken and j not in paired:
            overlaps.append(value)
            taken.add(i)
            paired.add(j)
    return overlaps


def union_masks(answer: Answer) -> dict[int, np.ndarray]:
    """For each image in which the answer names a mask, the union [H, W] bool of its masks."""
    unions: dict[int, np.ndarray] = {}
    for mark in answer.marks:
        if mark.mask is not None:
            before = unions.get(mark.image)
            unions[mark.image] = mark.mask.astype(bool) if before is None else before | mark.mask.astype(bool)
    return unions


def mask_overlap(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> tuple[int, int]:
    """Pixels in the intersection and in the union of two `union_masks`, over all images."""
    both = one.keys() & other.keys()
    assert all(one[image].shape == other[image].shape for image in both), "masks of one image have its size"
    common = sum(int((one[image] & other[image]).sum()) for image in both)
    pixels = sum(int(mask.sum()) for masks in (one, other) for mask in masks.values())
    return common, pixels - common
