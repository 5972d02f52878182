"""Check of the form of boxes and points: other forms are refused where corners in pixels are expected."""

from __future__ import annotations

import logging

from PIL.Image import Image

from mllm.dataset.base import SampleDataset
from mllm.dataset.rows import Row
from mllm.dataset.single_image_dataset.grounding import GroundingDataset
from mllm.errors import DataError
from mllm.private_messages import PublicText
from mllm.structures import Sample

logger = logging.getLogger(__name__)

MIN_SIDE = 2.0
"""Side in pixels; boxes with a shorter side may not be in pixels."""
MIN_BOXES = 10
"""Number of different boxes or points from which their positions determine their form."""
MIN_OVERLAP = 0.2
"""Intersection over union of a box and the bounds of its polygons; with less, they may be in different forms."""
Numbers = tuple[float, ...]


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
        self.places = {"boxes": Places(), "points": Places()}
        self.polygons = self.apart = 0
        self.first_apart: int | None = None
        """Index of the first row whose polygons are apart from their box."""

    def add(self, sample: Sample, index: int) -> None:
        """Count the marks of a row."""
        for mark in sample.marks:
            if mark.box is not None:
                x1, y1, x2, y2 = mark.box
                self.boxes += 1
                self.places["boxes"].add(mark.box, sample.images[mark.image], self.dataset, index)
                if mark.undecoded is not None and mark.undecoded.bounds is not None:
                    self.polygons += 1
                    if _overlap(mark.box, mark.undecoded.bounds) < MIN_OVERLAP:
                        self.apart += 1
                        self.first_apart = index if self.first_apart is None else self.first_apart
                if min(x2 - x1, y2 - y1) < MIN_SIDE:
                    self.small += 1
                    self.first_small = self.first_small or (index, mark.box)
                if self.may_be_sizes:
                    self.may_be_sizes = _fits_as_sizes(mark.box, sample.images[mark.image])
                    if len(self.first_boxes) < MIN_BOXES:
                        self.first_boxes.setdefault(mark.box, index)
            if mark.point is not None:
                self.points += 1
                self.places["points"].add(mark.point, sample.images[mark.image], self.dataset, index)
                self.largest = max(self.largest, *mark.point)
                self.first_point = self.first_point or (index, mark.point)

    def check(self) -> None:
        """Raise `DataError` if boxes or points are probably in another form than the one that is read.

        This is so if most boxes are smaller than `MIN_SIDE`, if all points are within the first pixel, or if the
        centers of at least `MIN_BOXES` different boxes are all in the upper left quarters of their images, or if the
        polygons of most objects are not in their boxes. Log a warning if all boxes or points are in that quarter.
        """
        has_option = isinstance(self.dataset, GroundingDataset) and self.dataset.has_box_option
        fix = _FIX if has_option else _FIX_FILE
        if self.first_small is not None and self.small > self.boxes / 2:
            index, box = self.first_small
            problem = (
                f"the box {_format(box)} is smaller than {MIN_SIDE:g} pixels, like {self.small:,} of {self.boxes:,}"
            )
            raise DataError(
                f"{self.dataset.describe(index)}: {problem} boxes of this dataset: {fix}",
                f"most boxes are smaller than {MIN_SIDE:g} pixels: {fix}",
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
        if self.first_apart is not None and self.apart > self.polygons / 2:
            problem = "the polygons are not in the box"
            raise DataError(
                f"{self.dataset.describe(self.first_apart)}: {problem}, like those of {self.apart:,} of "
                f"{self.polygons:,} objects of this dataset: {_FIX_POLYGONS}",
                f"the polygons of most objects are not in their boxes: {_FIX_POLYGONS}",
            )
        for name, places in self.places.items():
            places.report(name)


class Places:
    """Boxes or points of a dataset, while all are in the upper left quarters of their images."""

    def __init__(self) -> None:
        self.are_near = True
        """True while all boxes or points are in that quarter."""
        self.first: dict[Numbers, Row] = {}
        """The first `MIN_BOXES` different ones and their rows."""

    def add(self, numbers: Numbers, image: Image, dataset: SampleDataset, index: int) -> None:
        """Read a box x1 y1 x2 y2 or a point x y in pixels."""
        if self.are_near:
            right, bottom = numbers[-2:]
            self.are_near = 2 * right <= image.width and 2 * bottom <= image.height
            if len(self.first) < MIN_BOXES:
                self.first.setdefault(numbers, Row.current(dataset, index))

    def report(self, name: str) -> None:
        """Log a warning if there are at least `MIN_BOXES` different ones, all in that quarter."""
        if self.are_near and len(self.first) == MIN_BOXES:
            row = next(iter(self.first.values()))
            logger.warning("%s", PublicText(f"{row.name}: all {name} of this dataset {_ALL_NEAR}"))


_FIX = (
    "are the numbers fractions of the image (0 to 1), or in another form? This dataset reads pixels: box='normalized' "
    "reads fractions, or multiply them by the width and height of the image"
)
_FIX_FILE = "the numbers of this file format are pixels: multiply fractions by the width and height of the image"
_FIX_POLYGONS = "both must be in pixels of the image, and the numbers of 'segmentation' x y x y"
_ALL_NEAR = (
    "are in the upper left quarters of their images: are the numbers percent, thousandths, or pixels of smaller copies "
    "of the images?"
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


def _overlap(box: Numbers, other: Numbers) -> float:
    """Return the intersection over union of two boxes x1 y1 x2 y2."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (box, other)]
    return width * height / (sum(areas) - width * height)
