"""Reader of COCO detection files: `images`, `annotations` and `categories` in one JSON file."""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mllm.dataset.annotations.objects import (
    AnnotatedImage,
    AnnotatedImages,
    Annotations,
    EmptyBoxes,
    LabeledBox,
    empty_box_error,
    has_area,
)
from mllm.dataset.tables.json_stream import JsonStream
from mllm.dataset.tables.text_files import open_text
from mllm.errors import DataError

_LISTS = ("images", "annotations", "categories")


def find_coco(path: Path, empty_boxes: EmptyBoxes = "refuse") -> Annotations | None:
    """Return the annotated images of a file in the format of COCO; None for another file.

    Boxes are x y width height in pixels; crowds are left out.

    Args:
        path: The file.
        empty_boxes: 'refuse' images with a box without an area, or 'drop' such boxes.

    Raises:
        DataError: The lists have another form, an id occurs twice, or an annotation names an absent image or category.
    """
    if path.suffix.lower() != ".json":
        return None
    try:
        with open_text(path) as file:
            content = _Content(path)
            for name, value in JsonStream(file).members(lists=lambda name: name in _LISTS):
                content.add(name, value)
    except (DataError, OSError, EOFError, zlib.error, ValueError, RecursionError):
        return None  # the reader of tables reports what is wrong
    return None if content.boxes is None else content.annotations(content.boxes, empty_boxes)


class _Content:
    """Contents of a COCO file. Of each item, the needed values are kept, so that polygons of masks take no memory.

    Args:
        path: The file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faulty = set(_LISTS)
        """Names of the lists that are absent or have another form."""
        self.named: dict[str, list[tuple[Any, Any]]] = {}
        """Id and name of the images and of the categories."""
        self.boxes: _Boxes | None = None

    def add(self, name: str, value: Any) -> None:
        """Add a member of the file; lists are iterators."""
        if name not in _LISTS:
            return
        boxes, named = _Boxes(), list[tuple[Any, Any]]()
        self.faulty.discard(name)
        for item in value if isinstance(value, Iterator) else (value,):
            if not isinstance(item, dict) or not isinstance(value, Iterator):
                self.faulty.add(name)
            elif name == "annotations":
                boxes.add(item)
            else:
                named.append((item.get("id"), item.get("file_name" if name == "images" else "name", "")))
        if name == "annotations":
            self.boxes = boxes
        else:
            self.named[name] = named

    def annotations(self, boxes: _Boxes, empty_boxes: EmptyBoxes) -> Annotations:
        """Return the annotated images."""
        for name in _LISTS:
            if name in self.faulty:
                raise DataError(f"{self.path} is not a COCO file: '{name}' must be a list of objects")
        labels = {self._id(identity, "categories"): str(name) for identity, name in self.named["categories"]}
        if len(set(labels.values())) < len(self.named["categories"]) or "" in labels.values():
            raise DataError(f"{self.path}: the categories need different ids and names")
        files = self._files()
        dropped = 0

        def images() -> Iterator[AnnotatedImage]:
            nonlocal dropped
            of_images = boxes.of_images(files, labels, self.path)
            for number, (name, (objects, error)) in enumerate(zip(files.values(), of_images, strict=True), start=1):
                empty = [item for item in objects if not has_area(item.box)]
                refusal = empty_box_error(empty, empty_boxes)
                dropped += len(empty)
                rest = () if refusal else tuple(item for item in objects if has_area(item.box))
                yield AnnotatedImage(name, f"{self.path}, image {number}", rest, error or refusal)

        annotated = AnnotatedImages(images())
        if not len(annotated):
            raise DataError(f"{self.path} has no images")
        return Annotations(self.path, annotated, tuple(labels.values()), dropped)

    def _files(self) -> dict[Any, str]:
        """Return the file of each image by its id."""
        files: dict[Any, str] = {}
        for number, (value, name) in enumerate(self.named["images"], start=1):
            identity = self._id(value, "images")
            if identity in files:
                raise DataError(f"{self.path}: image {number} has the id {identity!r}, which an earlier image has")
            if not isinstance(name, str) or not name:
                raise DataError(f"{self.path}: image {number} has no file_name")
            files[identity] = name
        return files

    def _id(self, identity: Any, name: str) -> Any:
        if not isinstance(identity, (int, str)):
            raise DataError(f"{self.path}: an entry of '{name}' has no id")
        return identity


class _Boxes:
    """Boxes of a COCO file in arrays, in the order of the file."""

    def __init__(self) -> None:
        self.images: list[Any] = []
        self.categories: list[Any] = []
        self.is_used = array("B")
        """0 for crowds, which are not the box of one object, and for boxes that cannot be used."""
        self.corners = array("d")
        """x1 y1 x2 y2 of each box."""
        self.errors: dict[int, str] = {}
        """Index of a box that cannot be used -> the reason."""

    def add(self, item: Mapping[str, Any]) -> None:
        """Add an annotation."""
        index = len(self.images)
        self.images.append(item.get("image_id"))
        self.categories.append(item.get("category_id"))
        box = (0.0, 0.0, 0.0, 0.0)
        if not item.get("iscrowd"):
            try:
                x, y, width, height = (float(value) for value in item["bbox"])
            except (KeyError, TypeError, ValueError, OverflowError):
                self.errors[index] = f"annotation {index + 1} needs a bbox of four numbers"
            else:
                box = (x, y, x + width, y + height)
                if not all(map(math.isfinite, (x, y, width, height))) or width < 0 or height < 0:
                    self.errors[index] = f"annotation {index + 1} has an impossible bbox {item['bbox']}"
        self.is_used.append(not item.get("iscrowd") and index not in self.errors)
        self.corners.extend(box)

    def of_images(
        self, files: Mapping[Any, str], labels: Mapping[Any, str], path: Path
    ) -> Iterator[tuple[list[LabeledBox], str]]:
        """Yield the boxes of each image, also those without an area, and the reason why it cannot be used, or ''.

        Raises:
            DataError: An annotation names an absent image or category.
        """
        positions = {identity: position for position, identity in enumerate(files)}
        image_of = np.empty(len(self.images), np.int64)
        for index, (image, category) in enumerate(zip(self.images, self.categories, strict=True)):
            if not isinstance(image, Hashable) or image not in positions:
                raise DataError(f"{path}: annotation {index + 1} has the image_id {image!r}, which no image has")
            if not isinstance(category, Hashable) or category not in labels:
                fault = f"has the category_id {category!r}, which no category has"
                raise DataError(f"{path}: annotation {index + 1} {fault}")
            image_of[index] = positions[image]
        order = np.argsort(image_of, kind="stable")
        ends = np.searchsorted(image_of[order], np.arange(len(files)), side="right")
        start = 0
        for end in ends.tolist():
            own = order[start:end].tolist()
            error = next((self.errors[index] for index in own if index in self.errors), "")
            yield [self._box(index, labels) for index in own if self.is_used[index]], error
            start = end

    def _box(self, index: int, labels: Mapping[Any, str]) -> LabeledBox:
        x1, y1, x2, y2 = self.corners[4 * index : 4 * index + 4]
        return LabeledBox(labels[self.categories[index]], (x1, y1, x2, y2))
