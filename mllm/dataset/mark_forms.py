"""Check of the form of boxes and points: fractions of an image are refused where pixels are expected."""

from __future__ import annotations

from collections.abc import Iterable

from mllm.dataset.base import SampleDataset
from mllm.errors import DataError
from mllm.structures import Mark

MIN_SIDE = 2.0
"""Side in pixels; boxes with a shorter side may not be in pixels."""


class MarkForms:
    """Sizes of the boxes and points of a dataset."""

    def __init__(self, dataset: SampleDataset) -> None:
        self.dataset = dataset
        self.boxes = self.small = self.points = 0
        self.first_small: tuple[int, tuple[float, ...]] | None = None
        """Index of the first row with a small box, and that box."""
        self.first_point: tuple[int, tuple[float, ...]] | None = None
        self.largest = 0.0
        """Largest coordinate of all points."""

    def add(self, marks: Iterable[Mark], index: int) -> None:
        """Count the marks of a row."""
        for mark in marks:
            if mark.box is not None:
                x1, y1, x2, y2 = mark.box
                self.boxes += 1
                if min(x2 - x1, y2 - y1) < MIN_SIDE:
                    self.small += 1
                    self.first_small = self.first_small or (index, mark.box)
            if mark.point is not None:
                self.points += 1
                self.largest = max(self.largest, *mark.point)
                self.first_point = self.first_point or (index, mark.point)

    def check(self) -> None:
        """Raise `DataError` if most boxes are smaller than `MIN_SIDE`, or all points are within the first pixel."""
        if self.first_small is not None and self.small > self.boxes / 2:
            index, box = self.first_small
            problem = (
                f"the box {_format(box)} is smaller than {MIN_SIDE:g} pixels, like {self.small:,} of {self.boxes:,}"
            )
            raise DataError(
                f"{self.dataset.describe(index)}: {problem} boxes of this dataset: {_FIX}",
                f"most boxes are smaller than {MIN_SIDE:g} pixels: {_FIX}",
            )
        if self.first_point is not None and self.largest <= 1:
            index, point = self.first_point
            problem = (
                f"the point {_format(point)} is in the first pixel, like all {self.points:,} points of this dataset"
            )
            raise DataError(
                f"{self.dataset.describe(index)}: {problem}: {_FIX}", f"all points are in the first pixel: {_FIX}"
            )


_FIX = (
    "are the numbers fractions of the image (0 to 1), or in another form? This dataset reads pixels: box='normalized' "
    "reads fractions, or multiply them by the width and height of the image"
)


def _format(numbers: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{number:g}" for number in numbers) + "]"
