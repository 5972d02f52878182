"""Pictures of the rows of a split, small, with reference and prediction drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from PIL import Image

from mllm.errors import UserError
from mllm.report.drawing import Drawn, beside_truth, draw_marks, numbered
from mllm.report.html_page import THUMBNAIL, data_url
from mllm.structures import Mark, Sample

SMALLEST = 256
"""Pixels of the longer side below which a picture is enlarged."""
MAX_IMAGES = 2
"""Maximum number of pictures of a sample, the first images with marks."""
BUDGET = 6_000_000
"""Maximum number of characters of all pictures of a report."""


class Split(Protocol):
    """Dataset of the rows."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the sample of a row."""
        ...

    def describe(self, index: int, epoch: int = 0) -> str:
        """Return the location of a row."""
        ...


OpenSplits = Callable[[], dict[str, Split]]
"""Function that opens the splits of a run; it raises a `UserError` if its data cannot be read."""


@dataclass(frozen=True)
class Picture:
    """Picture of an image of a sample."""

    source: str
    """The image as a data URL."""
    alt: str
    """Description for a screen reader."""
    caption: str
    width: int
    height: int


class Pictures:
    """Pictures of rows that are identified by their source, read from the data of the run.

    The data are opened when the first picture is needed. Rows that cannot be read have no picture.

    Args:
        open_splits: Function that opens the data.
    """

    def __init__(self, open_splits: OpenSplits) -> None:
        self._open_splits = open_splits
        self._rows: dict[tuple[str, str], int] = {}
        self.problem = ""
        """Sentence about data that could not be opened. Empty: they could."""
        self.left = BUDGET
        """Number of characters that further pictures may have."""

    @cached_property
    def splits(self) -> dict[str, Split]:
        """Return the splits by name; none if the data cannot be opened."""
        try:
            return self._open_splits()
        except UserError as error:
            self.problem = f"There are no pictures, because the data cannot be read: {error}"
            return {}

    def find(self, split: str, sources: Iterable[str]) -> None:
        """Look up the first row of a split with each source in one pass over its rows, for `sample`."""
        dataset, missing = self.splits.get(split), set(sources)
        if dataset is None:
            return
        for index in range(len(dataset)):
            if not missing:
                return
            source = dataset.describe(index)
            if source in missing:
                missing.remove(source)
                self._rows[split, source] = index

    def sample(self, split: str, source: str) -> Sample | None:
        """Return the sample of a row of a split that was looked up; None if there is none, or it cannot be read."""
        index = self._rows.get((split, source))
        return None if index is None else read_sample(self.splits[split], index)

    def draw(self, sample: Sample | None, predicted: Sequence[Mark], true: Sequence[Mark]) -> list[Picture]:
        """Return pictures of the images of a sample; those with marks first. Empty if the page would become too large.

        With predictions, reference and prediction have one color each. Other marks are numbered.
        """
        if sample is None or self.left <= 0:
            return []
        marked = {mark.image for mark in (*predicted, *true)}
        order = sorted(range(len(sample.images)), key=lambda image: (image not in marked, image))[:MAX_IMAGES]
        drawn = beside_truth(predicted, true) if predicted or true else []
        pictures = []
        for image in sorted(order):
            inside = [entry for entry in drawn if entry.mark.image == image]
            title = sample.views[image] if sample.views else f"image {image + 1}" if len(sample.images) > 1 else ""
            pictures.append(_picture(sample.images[image], inside, title))
        self.left -= sum(len(picture.source) for picture in pictures)
        return pictures


def read_sample(split: Split, index: int) -> Sample | None:
    """Return the sample of a row; None if it cannot be read."""
    try:
        return split.sample(index)
    except UserError:
        return None  # the run lists it among the skipped rows


def draw_example(sample: Sample, image: int = 0) -> Picture:
    """Return a picture of an image of a training sample with its numbered marks."""
    return _picture(sample.images[image], [part for part in numbered(sample.marks) if part.mark.image == image], "")


def _picture(image: Image.Image, marks: Sequence[Drawn], title: str) -> Picture:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    if marks:
        factors = small.width / image.width, small.height / image.height
        scaled = [entry._replace(mark=_scaled(entry.mark, factors, small.size)) for entry in marks]
        small = draw_marks(small, scaled, SMALLEST)
    count = f" with {len(marks)} marks" if len(marks) > 1 else " with 1 mark" if marks else ""
    return Picture(data_url(small), f"{title or 'image'}{count}", title, *small.size)


def _scaled(mark: Mark, factors: tuple[float, float], size: tuple[int, int]) -> Mark:
    """Return a mark of an image that was resized to `size` (width, height) by these factors."""
    mask = None
    if mark.mask is not None:
        mask = np.asarray(Image.fromarray(mark.mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST), bool)
    x, y = factors
    box = None if mark.box is None else (mark.box[0] * x, mark.box[1] * y, mark.box[2] * x, mark.box[3] * y)
    point = None if mark.point is None else (mark.point[0] * x, mark.point[1] * y)
    return replace(mark, box=box, mask=mask, point=point)
