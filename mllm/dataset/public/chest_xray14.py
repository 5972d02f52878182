"""ChestX-ray14 of the NIH: 112,120 frontal chest X-rays of 30,805 patients (Wang et al., CVPR 2017)."""

from __future__ import annotations

import logging
import os
from array import array
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from mllm.dataset.folder_files import is_hidden
from mllm.dataset.public.official import (
    Ids,
    check_columns,
    field,
    no_row,
    official_file,
    official_split,
    official_table,
    rows_of,
)
from mllm.dataset.single_image_dataset.grounding import BoxForm
from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import ERROR, Records
from mllm.dataset.tables.text_files import read_text_file
from mllm.dataset.tasks.annotated import DetectionDataset, Labels
from mllm.dataset.tasks.labels import MultiLabelDataset
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS

logger = logging.getLogger(__name__)

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"
SPLITS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
"""Official split -> its list of images."""
_ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_BOX_FILE = ("BBox_List_2017.csv",)
STRATA = ("Patient Age", "Patient Gender", "View Position")
"""Columns that rows keep for figures by stratum."""
_BOX_COLUMNS = (("Bbox [x", "x"), ("y", "Bbox [y"), ("w", "Bbox [w"), ("h]", "Bbox [h]", "h"))
"""Names of the four columns of a box, the published ones first. Copies of the file have names of their own."""
_SPELLINGS = {"Infiltrate": "Infiltration"}
"""Labels of the file of boxes that the table of labels spells otherwise."""
_TEXTS = {label: label.replace("_", " ") for label in LABELS}


class ImageFiles:
    """Paths of the images relative to the folder, by name: `images/` or `images_001/images/` and so on.

    Args:
        root: Folder of the dataset.

    Raises:
        DataError: There is no image.
    """

    def __init__(self, root: Path) -> None:
        self._folders: list[str] = []
        names, folders = list[bytes](), array("i")
        for place in sorted(root.glob("images*")):
            for folder, _, files in os.walk(place):
                images = [os.fsencode(name) for name in files if name.endswith(".png") and not is_hidden(name)]
                names += images
                folders.extend([len(self._folders)] * len(images))
                self._folders.append(Path(folder).relative_to(root).as_posix())
        if not names:
            raise DataError(f"data_path {root} has no images/*.png or images_001/images/*.png")
        self._names = np.array(names)
        order = np.argsort(self._names, kind="stable")
        self._names, self._folder_of = self._names[order], np.frombuffer(folders, np.int32)[order]
        self._is_marked = np.zeros(len(order), bool)

    def _find(self, name: str) -> int | None:
        """Return the last position of a name."""
        key = os.fsencode(name)
        position = int(np.searchsorted(self._names, key, side="right")) - 1
        return position if position >= 0 and self._names[position] == key else None

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def get(self, name: str) -> str:
        """Return the path of an image; the name if there is none."""
        position = self._find(name)
        return name if position is None else self._path(position)

    def mark(self, name: str) -> None:
        """Record that an image has a row."""
        if (position := self._find(name)) is not None:
            self._is_marked[position] = True

    def unmarked(self) -> list[str]:
        """Return the paths of the images without a row, in the order of their names."""
        is_last = np.append(self._names[1:] != self._names[:-1], True)
        return [self._path(int(position)) for position in np.flatnonzero(is_last & ~self._is_marked)]

    def _path(self, position: int) -> str:
        return f"{self._folders[self._folder_of[position]]}/{os.fsdecode(self._names[position])}"


class NamesOfSplit:
    """Names of the images of an official split."""

    def __init__(self, path: Path) -> None:
        self._names = np.sort(np.array([os.fsencode(name) for name in read_text_file(path).split()]))

    def __contains__(self, name: str) -> bool:
        position = int(np.searchsorted(self._names, key := os.fsencode(name)))
        return position < len(self._names) and bool(self._names[position] == key)


def images_of_split(root: Path, split: str | None) -> NamesOfSplit | None:
    """Return the names of the images of an official split; None: all images."""
    if split is None:
        return None
    return NamesOfSplit(official_file(root, (SPLITS[split],), f"the images of split {split}"))


@DATASETS.register_module()
class ChestXray14Dataset(MultiLabelDataset):
    """Findings in frontal chest X-rays of ChestX-ray14: 14 labels or `No Finding`.

    `data_path` holds `Data_Entry_2017_v2020.csv` (or `Data_Entry_2017.csv`), `train_val_list.txt`, `test_list.txt` and
    the images in `images/` or `images_001/images/` to `images_012/images/`, as at
    https://nihcc.app.box.com/v/ChestXray-NIHCC. The official splits have no patient in common; divide `train_val` with
    `PatientSplit`.

    Args:
        data_path: Folder of the dataset.
        split: 'train_val' or 'test'; None: all images.
        labels: Labels that are used; None: all 14. In texts, `Pleural_Thickening` has a space.
        per: See `MultiLabelDataset`.
        options: Options of `GroundingDataset`.
    """

    has_columns = False

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = "train_val",
        labels: Labels | None = None,
        per: Literal["image", "label"] = "image",
        **options: Any,
    ) -> None:
        root = Path(data_path).expanduser()
        self.official = official_split(split, tuple(SPLITS))
        texts = _TEXTS if labels is None else labels
        super().__init__(root, root, labels=texts, per=per, none=NO_FINDING, **options)

    @override
    def open_table(self, path: Path) -> Records:
        entries = official_file(path, _ENTRIES, "the labels")
        records = official_table(entries, ("Image Index", "Finding Labels", "Patient ID"))
        names, files = images_of_split(path, self.official), ImageFiles(path)
        rows, places, ids = PackedRows(), PackedRows(), Ids("Image Index")
        for index, row in rows_of(records):
            if ERROR in row:
                rows.append(row)
                places.append(records.describe(index))
                continue
            name = field(row, "Image Index")
            is_used = names is None or name in names
            ids.add(name, index, len(rows) if is_used else -1)
            files.mark(name)
            if is_used:
                rows.append(self._row(row, name, files))
                places.append(records.describe(index))
        if without_row := files.unmarked():
            example = path / without_row[0]
            logger.warning("%s: %d images have no row, for example %s", entries, len(without_row), example)
        errors = ids.errors(lambda index: field(records[index], ids.column), records.describe)
        return ListedRecords(entries, rows, places, f"of split '{self.official}'" if self.official else "", errors)

    def _row(self, row: dict[str, Any], name: str, files: ImageFiles) -> dict[str, Any]:
        """Return the image, the patient and the labels of a row of the table; `ERROR` if it cannot be used."""
        present = [text for text in field(row, "Finding Labels").split("|") if text]
        unknown = [label for label in present if label not in LABELS and label != NO_FINDING]
        error = ""
        if unknown:
            error = f"unknown label '{unknown[0]}'{hint(unknown[0], LABELS)}"
        elif NO_FINDING in present and len(present) > 1:
            error = f"'{NO_FINDING}' stands beside other labels: {row['Finding Labels']}"
        elif not present:
            error = "field 'Finding Labels' is empty"
        elif name not in files:
            error = f"image {name} is in none of the folders images*"
        values = {label: int(label in present) for label in LABELS}
        facts = {column: row[column] for column in STRATA if column in row}
        return {"image": files.get(name), "patient": row["Patient ID"], ERROR: error, **facts, **values}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.chest import write_chest_xray14

        return write_chest_xray14(folder, rows)


class _Patients:
    """Patients of the images.

    Args:
        root: Folder of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self._table = official_file(root, _ENTRIES, "the patients")
        self.of_image: dict[str, Any] = {}
        """Name of an image -> its patient."""
        self._unreadable = ""
        for _, row in rows_of(official_table(self._table, ("Image Index", "Patient ID"))):
            if ERROR in row:
                self._unreadable = self._unreadable or row[ERROR]
            else:
                self.of_image[field(row, "Image Index")] = row["Patient ID"]

    def error(self, image: str) -> str:
        """Return the error of an image whose patient the table does not have; empty for other images."""
        return "" if image in self.of_image else no_row("Image Index", image, self._table, self._unreadable)


@DATASETS.register_module()
class ChestXray14BoxDataset(DetectionDataset):
    """Boxes of findings in a part of the images of ChestX-ray14.

    `data_path` is the folder of `ChestXray14Dataset` with `BBox_List_2017.csv`, whose boxes are x y width height in
    pixels. Its label `Infiltrate` is called `Infiltration` here, as in the table of labels. The file lists the boxes of
    the labels that an image has, so no question about an absent label is asked.

    Args:
        data_path: Folder of the dataset.
        split: 'train_val' or 'test'; None: all images.
        labels: Labels that are used, or a dict to their texts; None: all.
        options: Options of `GroundingDataset`.
    """

    has_columns = False
    box: BoxForm = "xywh"

    def __init__(
        self, data_path: str | Path, split: str | None = None, labels: Labels | None = None, **options: Any
    ) -> None:
        root = Path(data_path).expanduser()
        self.official = official_split(split, tuple(SPLITS))
        for label in labels or ():
            if label not in LABELS:
                raise ConfigError(f"labels: ChestX-ray14 has no label '{label}'{hint(label, LABELS)}")
        super().__init__(root, root, labels=labels, absent=False, **options)

    @override
    def open_records(self, path: Path) -> Records:
        boxes = official_file(path, _BOX_FILE, "the boxes")
        records = official_table(boxes, ("Image Index", "Finding Label"))
        first = records.first_row()
        columns = [next((name for name in names if name in first), names[0]) for names in _BOX_COLUMNS]
        check_columns(records, columns)
        names, files = images_of_split(path, self.official), ImageFiles(path)
        patients = _Patients(path)
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        places: dict[tuple[str, str], str] = {}
        for index, row in rows_of(records):
            if ERROR in row:
                rows["", str(index)], places["", str(index)] = row, records.describe(index)
                continue
            name, label = field(row, "Image Index"), field(row, "Finding Label")
            label = _SPELLINGS.get(label, label)
            if (names is not None and name not in names) or (self.labels is not None and label not in self.labels):
                continue
            error = patients.error(name) if name in files else f"image {name} is in none of the folders images*"
            if label not in LABELS:
                error = f"unknown label '{label}'{hint(label, LABELS)}"
            new = {"image": files.get(name), "label": label, "boxes": [], ERROR: error}
            entry = rows.setdefault((name, label), {**new, "patient": patients.of_image.get(name)})
            entry["boxes"].append([row[column] for column in columns])
            places.setdefault((name, label), records.describe(index))
        return ListedRecords(boxes, list(rows.values()), list(places.values()))

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.chest import write_chest_xray14

        return {**write_chest_xray14(folder, rows), "split": None}
