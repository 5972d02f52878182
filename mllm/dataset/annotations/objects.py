"""Images with labeled boxes: the common form of all annotation formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True)
class Annotations:
    """All annotated images of a split."""

    path: Path
    """File or folder of the annotations."""
    images: tuple[AnnotatedImage, ...]
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
        counter = Counter(item.label for image in self.images for item in image.objects)
        return {label: counter[label] for label in self.labels}


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
