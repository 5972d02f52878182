"""Reader of Pascal VOC: `Annotations/*.xml`, `ImageSets/Main/SPLIT.txt` and `JPEGImages`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from mllm.dataset.annotations.objects import (
    AnnotatedImage,
    AnnotatedImages,
    Annotations,
    EmptyBoxes,
    LabeledBox,
    empty_box_error,
    size_of,
)
from mllm.dataset.folder_files import is_hidden
from mllm.dataset.progress import with_progress
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.text_files import read_text_file
from mllm.errors import DataError, hint

IMAGES = "JPEGImages"
"""Folder of the images."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(path: Path) -> bool:
    """Return True if a folder has the layout of Pascal VOC."""
    return (path / "Annotations").is_dir()


def read_voc(root: Path, split: str | None, empty_boxes: EmptyBoxes = "refuse") -> Annotations:
    """Return the annotated images of a split; a file that cannot be used has the reason in `error`.

    VOC counts pixels from 1 and includes the last one: the corners (1, 1, 640, 480) cover an image of 640 x 480, and
    become 0 0 640 480.

    Args:
        root: Folder with `Annotations` and `JPEGImages`.
        split: Name of a list in `ImageSets/Main`; None: all annotations.
        empty_boxes: 'refuse' images with a box whose first and last corner coincide, or 'drop' such boxes.

    Raises:
        DataError: The split has no list, or its list is empty.
    """
    dropped, folder = 0, str(root / "Annotations")

    def annotated(name: str, location: str) -> AnnotatedImage:
        nonlocal dropped
        file = os.path.join(folder, f"{name}.xml")  # pathlib takes a tenth of the time of an annotation
        try:
            image, objects, empty, size = _read(file, name)
        except DataError as error:
            return AnnotatedImage(f"{name}.jpg", file if os.path.exists(file) else location, error=str(error))
        refusal = empty_box_error(empty, empty_boxes)
        dropped += 0 if refusal else len(empty)
        return AnnotatedImage(image, file, () if refusal else tuple(objects), refusal, size=size)

    names = _names(root, split)
    images = AnnotatedImages(annotated(*name) for name in with_progress(names, "reading annotations"))
    labels = sorted(images.counts())
    if not labels:
        reason = next((f"; {image.location}: {image.error}" for image in images if image.error), "")
        raise DataError(f"{root}: no annotation of split {split} has an object{reason}")
    return Annotations(root, images, tuple(labels), dropped)


def _names(root: Path, split: str | None) -> Sequence[tuple[str, str]]:
    """Return the names of a split without suffix, each with its location."""
    if split is None:
        folder, suffix = root / "Annotations", ".xml"
        files = sorted(name for name in os.listdir(folder) if name.endswith(suffix) and not is_hidden(name))
        if not files:
            raise DataError(f"{folder} has no {suffix} file")
        return PackedRows((name.removesuffix(suffix), os.path.join(folder, name)) for name in files)
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        known = [file.stem for file in path.parent.glob("*.txt")]
        raise DataError(f"{path} does not exist: unknown split '{split}'{hint(split, known)}")
    lines = enumerate(read_text_file(path).splitlines(), start=1)
    names = PackedRows((line.split()[0], f"{path}, line {number}") for number, line in lines if line.strip())
    if not names:
        raise DataError(f"{path} is empty")
    return names


def _read(file: str, name: str) -> tuple[str, list[LabeledBox], list[LabeledBox], tuple[int, int] | None]:
    """Return the image of an annotation, its objects, those without an area, and its size; raise `DataError`."""
    try:
        with open(file, "rb", buffering=0) as opened:
            root = ElementTree.fromstring(opened.read())
    except FileNotFoundError:
        raise DataError(f"annotation {file} does not exist") from None
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"not valid XML ({error})") from error
    image = _file_name(root.findtext("filename") or "") or f"{name}.jpg"
    objects: list[LabeledBox] = []
    empty: list[LabeledBox] = []
    for number, element in enumerate(root.iter("object"), start=1):
        label = (element.findtext("name") or "").strip()
        if not label:
            raise DataError(f"object {number} has no name")
        box = element.find("bndbox")
        corners = {} if box is None else {child.tag: child.text for child in reversed(box)}  # the first of equal tags
        try:
            x1, y1, x2, y2 = (float(corners[corner] or "") for corner in _CORNERS)
        except (KeyError, ValueError):
            raise DataError(f"object {number} ({label}) needs the numbers {', '.join(_CORNERS)} in bndbox") from None
        if x2 < x1 or y2 < y1:
            raise DataError(f"object {number} ({label}) has reversed corners ({x1:g}, {y1:g}, {x2:g}, {y2:g})")
        is_empty = x1 == x2 or y1 == y2
        (empty if is_empty else objects).append(LabeledBox(label, (x1 - 1, y1 - 1, x2, y2)))
    size = size_of(root.findtext("size/width"), root.findtext("size/height"))
    return image if os.path.splitext(image)[1] else f"{image}.jpg", objects, empty, size


def _file_name(path: str) -> str:
    """Return the last part of a path of any operating system; empty if there is none."""
    return os.path.basename(path.strip().replace("\\", "/").rstrip("/"))
