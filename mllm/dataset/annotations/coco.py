"""Reader of COCO detection files: `images`, `annotations` and `categories` in one JSON file."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm.dataset.annotations.objects import (
    AnnotatedImage,
    Annotations,
    EmptyBoxes,
    LabeledBox,
    empty_box_error,
    has_area,
)
from mllm.dataset.tables.text_files import read_text
from mllm.errors import DataError

_LISTS = ("images", "annotations", "categories")


def read_coco(path: Path, data: Mapping[str, Any], empty_boxes: EmptyBoxes = "refuse") -> Annotations:
    """Return the annotated images of a file. Boxes are x y width height in pixels; crowds are left out.

    Args:
        path: The JSON file, for messages.
        data: Its contents.
        empty_boxes: 'refuse' images with a box without an area, or 'drop' such boxes.

    Raises:
        DataError: The file is not a COCO file, an id occurs twice, or an annotation names an absent image or category.
    """
    for name in _LISTS:
        if not isinstance(data.get(name), list) or not all(isinstance(item, dict) for item in data[name]):
            raise DataError(f"{path} is not a COCO file: '{name}' must be a list of objects")
    labels = {_id(item, path, "categories"): str(item.get("name", "")) for item in data["categories"]}
    if len(set(labels.values())) < len(data["categories"]) or "" in labels.values():
        raise DataError(f"{path}: the categories need different ids and names")
    files: dict[Any, str] = {}
    for number, item in enumerate(data["images"], start=1):
        identity = _id(item, path, "images")
        if identity in files:
            raise DataError(f"{path}: image {number} has the id {identity!r}, which an earlier image has")
        if not isinstance(item.get("file_name"), str):
            raise DataError(f"{path}: image {number} has no file_name")
        files[identity] = item["file_name"]
    objects, empty, errors = _objects(data["annotations"], files, labels, path)
    images = []
    for number, (identity, name) in enumerate(files.items(), start=1):
        refusal = empty_box_error(empty.get(identity, ()), empty_boxes)
        boxes = () if refusal else tuple(objects.get(identity, ()))
        images.append(AnnotatedImage(name, f"{path}, image {number}", boxes, errors.get(identity) or refusal))
    if not images:
        raise DataError(f"{path} has no images")
    dropped = sum(map(len, empty.values()))
    return Annotations(path, tuple(images), tuple(labels.values()), dropped)


def find_coco(path: Path) -> dict[str, Any] | None:
    """Return the contents of a JSON file with annotations in the format of COCO; None for another file."""
    if path.suffix.lower() != ".json":
        return None
    try:
        data = json.loads(read_text(path))
    except (DataError, OSError, EOFError, zlib.error, ValueError, RecursionError):
        return None  # the reader of tables reports what is wrong
    return data if isinstance(data, dict) and "annotations" in data else None


def _id(item: Mapping[str, Any], path: Path, name: str) -> Any:
    identity = item.get("id")
    if not isinstance(identity, (int, str)):
        raise DataError(f"{path}: an entry of '{name}' has no id")
    return identity


def _objects(
    annotations: list[dict[str, Any]], files: Mapping[Any, str], labels: Mapping[Any, str], path: Path
) -> tuple[dict[Any, list[LabeledBox]], dict[Any, list[LabeledBox]], dict[Any, str]]:
    """Return the objects, the objects without an area, and the error messages, each by image id."""
    objects: dict[Any, list[LabeledBox]] = {}
    empty: dict[Any, list[LabeledBox]] = {}
    errors: dict[Any, str] = {}
    for number, item in enumerate(annotations, start=1):
        image, category = item.get("image_id"), item.get("category_id")
        if image not in files:
            raise DataError(f"{path}: annotation {number} has the image_id {image!r}, which no image has")
        if category not in labels:
            raise DataError(f"{path}: annotation {number} has the category_id {category!r}, which no category has")
        if item.get("iscrowd"):
            continue  # the region of a crowd is not the box of one object
        try:
            x, y, width, height = (float(value) for value in item["bbox"])
        except (KeyError, TypeError, ValueError):
            errors.setdefault(image, f"annotation {number} needs a bbox of four numbers")
            continue
        if not all(map(math.isfinite, (x, y, width, height))) or width < 0 or height < 0:
            errors.setdefault(image, f"annotation {number} has an impossible bbox {item['bbox']}")
            continue
        labeled = LabeledBox(labels[category], (x, y, x + width, y + height))
        (objects if has_area(labeled.box) else empty).setdefault(image, []).append(labeled)
    return objects, empty, errors
