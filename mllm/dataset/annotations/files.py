"""Choice of the reader of annotations by their path."""

from __future__ import annotations

from pathlib import Path

from mllm.dataset.annotations.coco import find_coco
from mllm.dataset.annotations.objects import Annotations, EmptyBoxes
from mllm.dataset.annotations.voc import IMAGES, is_voc, read_voc
from mllm.errors import ConfigError, DataError


def default_image_folder(path: Path) -> Path:
    """Return the folder of the images of a Pascal VOC folder, of a COCO file or of a table."""
    return path / IMAGES if is_voc(path) else path.parent


def read_annotations(path: Path, split: str | None = None, empty_boxes: EmptyBoxes = "refuse") -> Annotations | None:
    """Return the annotations of a Pascal VOC folder or of a COCO file; None if the path is a table.

    Args:
        path: Folder with `Annotations`, or a file.
        split: Name of a list of a VOC folder; None: all annotations. A file has one split.
        empty_boxes: 'refuse' images with a box without an area, or 'drop' such boxes.

    Raises:
        ConfigError: A split is given for a file.
        DataError: The path is a folder of another layout, or the annotations cannot be read.
    """
    if is_voc(path):
        return read_voc(path, split, empty_boxes)
    if path.is_dir():
        raise DataError(f"data_path {path} has no folder Annotations: it needs the layout of Pascal VOC")
    if not path.exists():
        return None  # the reader of tables reports it
    if split is not None:
        raise ConfigError(f"split='{split}' selects a list of a Pascal VOC folder, but data_path {path} is a file")
    return find_coco(path, empty_boxes)
