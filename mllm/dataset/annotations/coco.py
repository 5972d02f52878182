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
    size_of,
)
from mllm.dataset.tables.json_stream import JsonStream
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.text_files import open_text
from mllm.errors import DataError

_LISTS = ("images", "annotations", "categories")


def find_coco(path: Path, empty_boxes: EmptyBoxes = "refuse") -> Annotations | None:
    """Return the annotated images of a file in the format of COCO; None for another file.

    Boxes are x y width height in pixels. The box of a crowd is left out, and its label is in `crowds` of the image.

    Args:
        path: The file.
        empty_boxes: 'refuse' images with a box without an area, or 'drop' such boxes.

    Raises:
        DataError: The lists have another form.
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
        self.named: dict[str, tuple[_Ids, PackedRows]] = {}
        """Ids of the images and of the categories, and their names with the sizes of images."""
        self.boxes: _Boxes | None = None

    def add(self, name: str, value: Any) -> None:
        """Add a member of the file; lists are iterators."""
        if name not in _LISTS:
            return
        boxes, ids, names = _Boxes(), _Ids(), PackedRows()
        self.faulty.discard(name)
        for item in value if isinstance(value, Iterator) else (value,):
            if not isinstance(item, dict) or not isinstance(value, Iterator):
                self.faulty.add(name)
            elif name == "annotations":
                boxes.add(item)
            else:
                ids.append(item.get("id"))
                text = item.get("file_name" if name == "images" else "name", "")
                names.append((text, size_of(item.get("width"), item.get("height"))))
        if name == "annotations":
            self.boxes = boxes
        else:
            self.named[name] = ids, names

    def annotations(self, boxes: _Boxes, empty_boxes: EmptyBoxes) -> Annotations:
        """Return the annotated images."""
        for name in _LISTS:
            if name in self.faulty:
                raise DataError(f"{self.path} is not a COCO file: '{name}' must be a list of objects")
        labels = {identity: str(name) for identity, (name, _) in zip(*self._checked("categories"), strict=True)}
        if len(set(labels.values())) < len(self.named["categories"][1]) or "" in labels.values():
            raise DataError(f"{self.path}: the categories need different ids and names")
        ids, files = self._checked("images")
        faults = _image_faults(ids, files)
        dropped = 0

        def images() -> Iterator[AnnotatedImage]:
            nonlocal dropped
            of_images = boxes.of_images(ids, labels)
            for number, ((name, size), found) in enumerate(zip(files, of_images, strict=True), start=1):
                objects, crowds, error = found
                error = faults.get(number - 1, error)
                empty = [item for item in objects if not has_area(item.box)]
                refusal = empty_box_error(empty, empty_boxes)
                dropped += len(empty)
                rest = () if refusal else tuple(item for item in objects if has_area(item.box))
                yield AnnotatedImage(name, f"{self.path}, image {number}", rest, error or refusal, crowds, size)
            for index, identity in boxes.without_image(ids):
                fault = f"has the image_id {identity!r}, which no image has"
                yield AnnotatedImage("", f"{self.path}, annotation {index + 1}", error=fault)

        annotated = AnnotatedImages(images())
        if not len(annotated):
            raise DataError(f"{self.path} has no images")
        return Annotations(self.path, annotated, tuple(labels.values()), dropped)

    def _checked(self, name: str) -> tuple[_Ids, PackedRows]:
        """Return ids and names of a list; raise `DataError` for an entry without an id."""
        ids, names = self.named[name]
        if not all(isinstance(identity, (int, str)) for identity in ids):
            raise DataError(f"{self.path}: an entry of '{name}' has no id")
        return ids, names


def _image_faults(ids: _Ids, files: PackedRows) -> dict[int, str]:
    """Return the reason why an image cannot be used, by its position."""
    faults = {place: f"has the id {ids.values[place]!r}, which an earlier image has" for place in ids.repeated()}
    for place, (name, _) in enumerate(files):
        if not isinstance(name, str) or not name:
            faults[place] = "has no file_name"
    return faults


class _Ids:
    """Ids in a list. Integers take 8 bytes each."""

    def __init__(self) -> None:
        self.values: Any = array("q")
        """The ids: an array, or a list if one of them is no integer of 64 bits."""

    def append(self, identity: Any) -> None:
        """Add an id."""
        is_array = isinstance(self.values, array)
        if is_array and not (type(identity) is int and -(1 << 63) <= identity < 1 << 63):
            self.values = list(self.values)
        self.values.append(identity)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def repeated(self) -> list[int]:
        """Return the positions of ids that an earlier position has."""
        if isinstance(self.values, list):
            first: dict[Any, int] = {}
            return [n for n, identity in enumerate(self.values) if first.setdefault(identity, n) < n]
        ids = np.frombuffer(self.values, np.int64)
        order = np.argsort(ids, kind="stable")
        return np.sort(order[1:][ids[order[1:]] == ids[order[:-1]]]).tolist()

    def positions(self, wanted: _Ids) -> np.ndarray:
        """Return the first position of each wanted id [wanted], int64; -1 for one that is absent."""
        if isinstance(self.values, list) or isinstance(wanted.values, list) or not len(self):
            position = dict[Any, int]()
            for number, identity in enumerate(self):
                position.setdefault(identity, number)
            found = (position.get(identity, -1) if isinstance(identity, Hashable) else -1 for identity in wanted)
            return np.fromiter(found, np.int64, len(wanted))
        ids, values = np.frombuffer(self.values, np.int64), np.frombuffer(wanted.values, np.int64)
        order = np.argsort(ids, kind="stable")
        places = order[np.minimum(np.searchsorted(ids[order], values), len(ids) - 1)]
        return np.where(ids[places] == values, places, -1)


class _Boxes:
    """Boxes of a COCO file in arrays, in the order of the file."""

    def __init__(self) -> None:
        self.images, self.categories = _Ids(), _Ids()
        self.is_crowd = array("B")
        """1 for crowds, whose box is not that of one object."""
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
        self.is_crowd.append(bool(item.get("iscrowd")))
        if not self.is_crowd[-1]:
            try:
                if any(isinstance(value, bool) for value in item["bbox"]):
                    raise TypeError("a truth value is no coordinate")
                x, y, width, height = (float(value) for value in item["bbox"])
            except (KeyError, TypeError, ValueError, OverflowError):
                self.errors[index] = f"annotation {index + 1} needs a bbox of four numbers"
            else:
                box = (x, y, x + width, y + height)
                if not all(map(math.isfinite, (x, y, width, height))) or width < 0 or height < 0:
                    self.errors[index] = f"annotation {index + 1} has an impossible bbox {item['bbox']}"
        self.corners.extend(box)

    def without_image(self, images: _Ids) -> Iterator[tuple[int, Any]]:
        """Yield the indices of annotations of absent images, with the id of the image."""
        for index in np.flatnonzero(images.positions(self.images) < 0).tolist():
            yield index, self.images.values[index]

    def of_images(
        self, images: _Ids, labels: Mapping[Any, str]
    ) -> Iterator[tuple[list[LabeledBox], frozenset[str], str]]:
        """Yield boxes of each image, also those without an area, labels of its crowds, and its error or ''."""
        image_of = images.positions(self.images)
        for index, category in enumerate(self.categories):
            if not isinstance(category, Hashable) or category not in labels:
                self.errors[index] = f"annotation {index + 1} has the category_id {category!r}, which no category has"
        order = np.argsort(image_of, kind="stable")
        ends = np.searchsorted(image_of[order], np.arange(len(images)), side="right")
        start = int((image_of < 0).sum())
        for end in ends.tolist():
            own = order[start:end].tolist()
            error = next((self.errors[index] for index in own if index in self.errors), "")
            known = [index for index in own if index not in self.errors]
            crowds = frozenset(labels[self.categories.values[index]] for index in known if self.is_crowd[index])
            used = (index for index in known if not self.is_crowd[index])
            yield [self._box(index, labels) for index in used], crowds, error
            start = end

    def _box(self, index: int, labels: Mapping[Any, str]) -> LabeledBox:
        x1, y1, x2, y2 = self.corners[4 * index : 4 * index + 4]
        return LabeledBox(labels[self.categories.values[index]], (x1, y1, x2, y2))
