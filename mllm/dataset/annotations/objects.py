"""Images with labeled boxes: the common form of all annotation formats."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from mllm.dataset.indices import from_zero
from mllm.dataset.tables.packed import PackedRows
from mllm.errors import ConfigError, hint

Box = tuple[float, float, float, float]
EmptyBoxes = Literal["refuse", "drop"]


@dataclass(frozen=True)
class LabeledBox:
    """An object in an image."""

    label: str
    box: Box
    """x1 y1 x2 y2 in pixels. Pixel (0, 0) spans 0 to 1 on both axes."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its objects."""

    image: str
    """File of the image, relative to the folder of the images."""
    location: str
    """Location of the annotation for messages: `FILE, line N`."""
    objects: tuple[LabeledBox, ...] = ()
    error: str = ""
    """Reason for which the annotation cannot be used. Empty: it can be used."""
    crowds: frozenset[str] = frozenset()
    """Labels of which the image has more objects than those with a box, such as crowds of COCO."""
    size: tuple[int, int] | None = None
    """Width and height in pixels of the image that was annotated; None: the file does not have them."""


class AnnotatedImages(Sequence[AnnotatedImage]):
    """Annotated images of a split. A box takes 40 bytes, in arrays, and an image some tens of bytes."""

    def __init__(self, images: Iterable[AnnotatedImage]) -> None:
        self._names = PackedRows()
        """File, location and size of each image."""
        self._crowds: dict[int, frozenset[str]] = {}
        self.repeated = 0
        """Number of boxes that are equal to another one of their image and label."""
        self._errors: dict[int, str] = {}
        self._labels: dict[str, int] = {}
        self._label_of_box = array("L")
        self._coordinates = array("d")
        self._ends = array("Q", [0])
        """Number of boxes before each image, and of all boxes at the end."""
        for image in images:
            if image.error:
                self._errors[len(self._names)] = image.error
            if image.crowds:
                self._crowds[len(self._names)] = image.crowds
            self._names.append((image.image, image.location, image.size))
            self.repeated += len(image.objects) - len(set(image.objects))
            for item in image.objects:
                self._label_of_box.append(self._labels.setdefault(item.label, len(self._labels)))
                self._coordinates.extend(item.box)
            self._ends.append(len(self._label_of_box))
        self._texts = list(self._labels)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> AnnotatedImage: ...

    @overload
    def __getitem__(self, index: slice) -> list[AnnotatedImage]: ...

    def __getitem__(self, index: int | slice) -> AnnotatedImage | list[AnnotatedImage]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = from_zero(index, len(self))
        boxes = range(self._ends[index], self._ends[index + 1])
        objects = tuple(LabeledBox(self._texts[self._label_of_box[box]], self._box(box)) for box in boxes)
        name, location, size = self._names[index]
        crowds = self._crowds.get(index, frozenset())
        return AnnotatedImage(name, location, objects, self._errors.get(index, ""), crowds, size)

    def location(self, index: int) -> str:
        """Return the location of the annotation of an image."""
        location: str = self._names[index][1]
        return location

    def _box(self, number: int) -> Box:
        x1, y1, x2, y2 = self._coordinates[4 * number : 4 * number + 4]
        return x1, y1, x2, y2

    @property
    def with_crowds(self) -> int:
        """Number of images with crowds."""
        return len(self._crowds)

    def counts(self) -> Counter[str]:
        """Return the number of boxes of each label."""
        return Counter({self._texts[label]: count for label, count in Counter(self._label_of_box).items()})


@dataclass(frozen=True)
class Annotations:
    """All annotated images of a split."""

    path: Path
    """File or folder of the annotations."""
    images: AnnotatedImages
    labels: tuple[str, ...]
    """Labels of the dataset, in the order of the file or sorted."""
    dropped: int = 0
    """Number of boxes without an area that were left out."""

    def names(self, labels: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
        """Return the text of each label that is used, by label.

        Args:
            labels: Labels, or a dict from labels to the texts that stand for them; None: all labels.

        Raises:
            ConfigError: A label does not occur in the annotations.
        """
        if labels is None:
            return {label: label for label in self.labels}
        names = dict(labels) if isinstance(labels, Mapping) else {label: label for label in labels}
        for label in names:
            if label not in self.labels:
                raise ConfigError(f"labels: {self.path} has no label '{label}'{hint(str(label), self.labels)}")
        if not names:
            raise ConfigError(f"labels is empty: choose from {', '.join(self.labels)}")
        return names

    def counts(self) -> dict[str, int]:
        """Return the number of boxes of each label."""
        counter = self.images.counts()
        return {label: counter[label] for label in self.labels}


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """Return the size of an image that an annotation has; None if it is not two positive integers."""
    try:
        size = int(width), int(height)
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def has_area(box: Box) -> bool:
    """Return True if both sides of a box are longer than 0."""
    return box[2] > box[0] and box[3] > box[1]


def empty_box_error(empty: Sequence[LabeledBox], empty_boxes: EmptyBoxes) -> str:
    """Return the reason for which an image with boxes without an area cannot be used. Empty: it can be used.

    Args:
        empty: The boxes of the image that have no area.
        empty_boxes: 'refuse' images with such boxes, or 'drop' the boxes.
    """
    if not empty or empty_boxes == "drop":
        return ""
    numbers = ", ".join(f"{number:g}" for number in empty[0].box)
    return (
        f"a box of '{empty[0].label}' has no area ({numbers}): correct it, or leave such boxes out with "
        "empty_boxes='drop'"
    )
