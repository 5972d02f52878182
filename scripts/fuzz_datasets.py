"""Kind of input `dataset` for `fuzz.py`: the tables, annotations and split files of the dataset classes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.registry import DATASETS

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".xml", ".txt", ".cfg", ".p", ".parquet")
"""Suffixes of the files that are changed; images have a kind of their own."""
_ROWS = 3
_OBJECT = (
    "<object><name>lesion</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>"
)
_LAYOUTS: Mapping[str, Mapping[str, Any]] = {"MedicalVQADataset": {"layout": "pmc_vqa"}}
"""Options of a class whose default layout another class has, too."""


class Datasets:
    """Miniatures of all dataset classes, each in its own folder below `root`.

    Args:
        root: Folder, which is created.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.options = {name: options for name in sorted(DATASETS.locations) if (options := self._write(name))}
        self.options["coco"] = _write_coco(root / "coco")
        self.options["voc"] = _write_voc(root / "voc")
        self.files = tuple(sorted(file for file in root.rglob("*") if file.suffix in SUFFIXES))

    def copy(self, example: Path, folder: Path) -> Path:
        """Copy the miniature of a file into a folder and return the path of the copy of the file."""
        relative = example.relative_to(self.root)
        shutil.copytree(self.root / relative.parts[0], folder / relative.parts[0], copy_function=os.link)
        return folder / relative

    def read(self, path: Path) -> object:
        """Build the dataset to which a copied file belongs, and check its rows as a training does."""
        top = next(parent for parent in path.parents if parent.name in self.options)
        original = str(self.root / top.name)
        options = {
            key: value.replace(original, str(top)) if isinstance(value, str) else value
            for key, value in self.options[top.name].items()
        }
        return check_splits({"train": build_dataset(options)})

    def _write(self, name: str) -> dict[str, Any]:
        """Write the miniature of a class and return its options; empty for a class without one."""
        extra = dict(_LAYOUTS.get(name, {}))
        options = DATASETS.find(name).miniature_with({"type": name, **extra}, self.root / name, _ROWS)
        return {"type": name, **extra, **options} if options else {}


def _write_images(folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    names = [f"{number}.png" for number in range(_ROWS)]
    for number, name in enumerate(names):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 48), dtype=np.uint8)).save(folder / name)
    return names


def _write_coco(root: Path) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": name, "width": 48, "height": 40}
        for number, name in enumerate(_write_images(root / "images"))
    ]
    boxes = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [2, 3, 18, 27], "area": 486, "iscrowd": 0}
        for number in range(_ROWS)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "lesion"}]}
    (root / "instances.json").write_text(json.dumps(content))
    return {"type": "DetectionDataset", "data_path": str(root / "instances.json"), "image_folder": str(root / "images")}


def _write_voc(root: Path) -> dict[str, Any]:
    names = [Path(name).stem for name in _write_images(root / "JPEGImages")]
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in names:
        size = "<size><width>48</width><height>40</height><depth>1</depth></size>"
        text = f"<annotation><filename>{name}.png</filename>{size}{_OBJECT}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names) + "\n")
    return {"type": "DetectionDataset", "data_path": str(root), "split": "train"}
