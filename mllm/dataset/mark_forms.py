"""Check of the form of boxes and points: other forms are refused where corners in pixels are expected."""

from __future__ import annotations

from PIL.Image import Image

from mllm.dataset.base import SampleDataset
from mllm.errors import DataError
from mllm.structures import Sample

MIN_SIDE = 2.0
"""Side in pixels; boxes with a shorter side may not be in pixels."""
MIN_BOXES = 10
"""Number of different boxes from which their positions determine their form."""


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
        self.may_be_sizes = dataset.assumes_corners
        """True while all boxes would also fit into their images if they were x y width height."""
        self.first_boxes: dict[tuple[float, ...], int] = {}
        """The first `MIN_BOXES` different boxes and the indices of their rows, while `may_be_sizes` is True."""

    def add(self, sample: Sample, index: int) -> None:
        """Count the marks of a row."""
        for mark in sample.marks:
            if mark.box is not None:
                x1, y1, x2, y2 = mark.box
                self.boxes += 1
                if min(x2 - x1, y2 - y1) < MIN_SIDE:
                    self.small += 1
                    self.first_small = self.first_small or (index, mark.box)
                if self.may_be_sizes:
                    self.may_be_sizes = _fits_as_sizes(mark.box, sample.images[mark.image])
                    if len(self.first_boxes) < MIN_BOXES:
                        self.first_boxes.setdefault(mark.box, index)
            if mark.point is not None:
                self.points += 1
                self.largest = max(self.largest, *mark.point)
                self.first_point = self.first_point or (index, mark.point)

    def check(self) -> None:
        """Raise `DataError` if boxes or points are probably in another form than the one that is read.

        This is so if most boxes are smaller than `MIN_SIDE`, if all points are within the first pixel, or if the
        centers of at least `MIN_BOXES` different boxes are all in the upper left quarters of their images.
        """
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
        if self.may_be_sizes and len(self.first_boxes) == MIN_BOXES:
            box, index = next(iter(self.first_boxes.items()))
            raise DataError(
                f"{self.dataset.describe(index)}: the center of the box {_format(box)} is in the upper left quarter of "
                f"its image, like those of all {self.boxes:,} boxes of this dataset: {_FIX_SIZES}",
                f"the centers of all boxes are in the upper left quarters of their images: {_FIX_SIZES}",
            )


_FIX = (
    "are the numbers fractions of the image (0 to 1), or in another form? This dataset reads pixels: box='normalized' "
    "reads fractions, or multiply them by the width and height of the image"
)
_FIX_SIZES = (
    "are the numbers x y width height? This dataset reads x1 y1 x2 y2: set box='xywh', or box='xyxy' if the numbers "
    "are corners"
)


def _fits_as_sizes(box: tuple[float, float, float, float], image: Image) -> bool:
    """Return True if a box x1 y1 x2 y2 is within its image if it is read as x y width height.

    Then the center of the box is in the upper left quarter of the image. A quarter of all boxes in random places are
    there, but all boxes whose width and height were read as corners.
    """
    x1, y1, x2, y2 = box
    return x1 + x2 <= image.width and y1 + y2 <= image.height


def _format(numbers: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{number:g}" for number in numbers) + "]"
