"""Overlap and matching of boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from mllm.structures import Answer, Mark

Item = TypeVar("Item")


class Box(NamedTuple):
    """Box in an image of a sample."""

    image: int
    """Index of the image in the sample."""
    corners: tuple[float, float, float, float]
    """x1 y1 x2 y2 in pixels."""


def box_of(mark: Mark) -> Box | None:
    """Return the box of a mark or the bounding box of its mask; None for a point and an empty mask."""
    if mark.box is not None:
        return Box(mark.image, mark.box)
    if mark.mask is None or not mark.mask.any():
        return None
    columns, rows = np.flatnonzero(mark.mask.any(axis=0)), np.flatnonzero(mark.mask.any(axis=1))
    return Box(mark.image, (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)))


def boxes_of(answer: Answer) -> list[Box]:
    """Return the boxes of an answer, in order."""
    return [box for box in map(box_of, answer.marks) if box is not None]


def box_iou(first: Box, second: Box) -> float:
    """Return the intersection over union, in [0, 1]; 0 for boxes in different images and for two empty boxes."""
    if first.image != second.image:
        return 0.0
    left, top = (max(first.corners[i], second.corners[i]) for i in (0, 1))
    right, bottom = (min(first.corners[i], second.corners[i]) for i in (2, 3))
    intersection = max(0.0, right - left) * max(0.0, bottom - top)
    union = area(first) + area(second) - intersection
    return intersection / union if union > 0 else 0.0


def area(box: Box) -> float:
    """Return the area of a box in square pixels."""
    x1, y1, x2, y2 = box.corners
    return max(0.0, x2 - x1) * max(0.0, y2 - y1)


def greedy_overlaps(
    predictions: Sequence[Item], targets: Sequence[Item], iou: Callable[[Item, Item], float]
) -> list[float]:
    """Match predictions and targets one to one, the pair with the largest IoU first, and return the IoU of each pair.

    Pairs without overlap are not matched.
    """
    pairs = [(iou(first, second), i, j) for i, first in enumerate(predictions) for j, second in enumerate(targets)]
    matched_predictions: set[int] = set()
    matched_targets: set[int] = set()
    overlaps = []
    for value, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if value > 0 and i not in matched_predictions and j not in matched_targets:
            overlaps.append(value)
            matched_predictions.add(i)
            matched_targets.add(j)
    return overlaps


def union_masks(answer: Answer) -> dict[int, np.ndarray]:
    """Return the union of the masks of an answer, [H, W] bool, for each image that has any."""
    unions: dict[int, np.ndarray] = {}
    for mark in answer.marks:
        if mark.mask is not None:
            union = unions.get(mark.image)
            unions[mark.image] = mark.mask.astype(bool) if union is None else union | mark.mask.astype(bool)
    return unions


def mask_overlap(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> tuple[int, int]:
    """Return the number of pixels in the intersection and in the union of two `union_masks`, over all images."""
    both = first.keys() & second.keys()
    assert all(first[image].shape == second[image].shape for image in both), "masks of one image have its size"
    intersection = sum(int((first[image] & second[image]).sum()) for image in both)
    pixels = sum(int(mask.sum()) for masks in (first, second) for mask in masks.values())
    return intersection, pixels - intersection
