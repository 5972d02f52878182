"""Datasets of labels of an image: several labels from the columns of a table, and one class from the folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.annotations.objects import AnnotatedImage, EmptyBoxes
from mllm.dataset.indices import from_zero
from mllm.dataset.patient_names import PatientNames
from mllm.dataset.single_image_dataset.grounding import NONE, GroundingDataset, answer_turn
from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.records import Records
from mllm.dataset.tables.values import is_empty
from mllm.dataset.tasks.annotated import AnnotatedDataset, Labels
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS, READERS
from mllm.structures import Sample

logger = logging.getLogger(__name__)

Uncertain = Literal["refuse", "zeros", "ones", "ignore"]
_VALUES: dict[str, bool | None] = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
    **dict.fromkeys(("0", "0.0", "false", "no"), False),
    **dict.fromkeys(("-1", "-1.0"), None),
}
"""Values of a label: present, absent, or uncertain (None)."""


def label_value(value: Any, label: str) -> bool | None:
    """Return True for a present label, False for an absent or blank one, None for an uncertain one (-1).

    Raises:
        DataError: The value is none of 1, 0, -1 and blank.
    """
    if is_empty(value):
        return False
    text = str(value).strip().lower()
    if text not in _VALUES:
        raise DataError(f"label '{label}' must be 1, 0, -1 (uncertain) or blank, not {value!r}")
    return _VALUES[text]


class PerLabelRecords(Records):
    """Rows of a table, each repeated once for every label, with the label in the field `label`.

    Args:
        records: The table.
        labels: Columns of the labels.
        certain: True: leave out rows whose value of the label is uncertain.
    """

    def __init__(self, records: Records, labels: Sequence[str], certain: bool) -> None:
        self.records, self.labels, self.path = records, labels, records.path
        self.indices: np.ndarray | None = None
        """Numbers of the rows that are used, [rows]; None: all."""
        if certain:
            self.indices = np.array(
                [
                    index * len(labels) + number
                    for index in range(len(records))
                    for number, label in enumerate(labels)
                    if label_value(records[index].get(label), label) is not None
                ]
            )
            if not len(self.indices):
                raise DataError(f"{self.path}: all values of {', '.join(labels)} are uncertain")

    def __len__(self) -> int:
        return len(self.records) * len(self.labels) if self.indices is None else len(self.indices)

    def _position(self, index: int) -> tuple[int, int]:
        """Return the row of the table and the number of the label."""
        index = from_zero(index, len(self))
        return divmod(index if self.indices is None else int(self.indices[index]), len(self.labels))

    @override
    def __getitem__(self, index: int) -> dict[str, Any]:
        row, label = self._position(index)
        return {**self.records[row], "label": self.labels[label]}

    @override
    def describe(self, index: int) -> str:
        row, label = self._position(index)
        return f"{self.records.describe(row)} ({self.labels[label]})"


@DATASETS.register_module()
class MultiLabelDataset(AnnotatedDataset):
    """Labels of an image: one column for each label, with 1 (present), 0 or blank (absent) or -1 (uncertain).

    Args:
        data_path, image_folder, split, empty_boxes, options: See `AnnotatedDataset`. In VOC and COCO a label is present
            if the image has a box of it.
        labels: Columns of the labels, or a dict from columns to the texts that stand for them. A table needs them.
        per: 'image': one question for an image; the answer has the present labels, separated by `; `. 'label': one
            question for each label; the answer is yes or no.
        uncertain: Treatment of -1, named as in CheXpert (arXiv:1901.07031): 'zeros' (absent), 'ones' (present),
            'ignore' (the question is left out, with `per='label'`) or 'refuse' (the row cannot be used).
        none: Answer for an image without a present label (`per='image'`).
    """

    default_templates = templates.FINDINGS

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        split: str | None = None,
        labels: Labels | None = None,
        empty_boxes: EmptyBoxes = "refuse",
        per: Literal["image", "label"] = "image",
        uncertain: Uncertain = "refuse",
        none: str = NONE,
        **options: Any,
    ) -> None:
        if uncertain == "ignore" and per == "image":
            raise ConfigError(
                "uncertain='ignore' leaves out single labels, but the answer with per='image' has all of them: set "
                "per='label', or uncertain='zeros' or 'ones'"
            )
        self.per, self.uncertain, self.none = per, uncertain, none
        super().__init__(data_path, image_folder, split, labels, empty_boxes, **options)
        if per == "label" and "template_string" not in options and "template_file" not in options:
            self.templates = templates.PRESENCE

    @override
    def open_records(self, path: Path) -> Records:
        records = self.open_table(path)
        if not self.labels:
            raise ConfigError(f"labels is missing: name the columns of {path} that are labels")
        labels = tuple(self.used_labels())
        first = records[0]
        for label in labels:
            if label not in first and not first.get("error"):
                raise ConfigError(f"labels: {records.describe(0)} has no column '{label}'{hint(label, first)}")
        return PerLabelRecords(records, labels, self.uncertain == "ignore") if self.per == "label" else records

    def open_table(self, path: Path) -> Records:
        """Return a table with a row for each image or study."""
        return super().open_records(path)

    @override
    def rows_of(self, image: AnnotatedImage) -> list[dict[str, Any]]:
        present = {item.label for item in image.objects}
        return [{"image": image.image, **{label: int(label in present) for label in self.used_labels()}}]

    @override
    def parse_annotated(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        labels = [row["label"]] if self.per == "label" else list(self.used_labels())
        present = [self.text_of_label(label) for label in labels if self._is_present(row, label)]
        names = ", ".join(self.text_of_label(label) for label in labels)
        question = self.draw_template(rng, label=names, labels=names, none=self.none)
        all_labels, yes_or_no = "; ".join(present) or self.none, "yes" if present else "no"
        answer = yes_or_no if self.per == "label" else all_labels
        return self.answered(row, question, answer)

    def _is_present(self, row: dict[str, Any], label: str) -> bool:
        value = label_value(row.get(label), label)
        if value is None:
            if self.uncertain == "refuse":
                raise DataError(
                    f"label '{label}' is -1, uncertain: choose uncertain='zeros', 'ones', or 'ignore' with per='label'"
                )
            return self.uncertain == "ones"
        return value

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row about the number and the size of the lesions."""
        x1, _, x2, _ = row["boxes"][0]
        return {"image": row["image"], "several lesions": int(len(row["boxes"]) > 1), "large lesion": int(x2 - x1 > 40)}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        return {**super().miniature(folder, rows), "labels": ["several lesions", "large lesion"]}


@DATASETS.register_module()
class ClassificationFolderDataset(GroundingDataset):
    """Class of an image: the name of the folder that holds it, as in `data_path/train/benign/0001.png`.

    Args:
        data_path: Folder with one folder for each class, or with a folder for each split.
        split: Folder of a split below `data_path`; None: `data_path` has the classes.
        labels: Classes, or a dict from the names of folders to the texts that stand for them; None: all folders.
        patient: Regular expression with one group that finds the patient in the path of an image below the folder of
            the classes, such as `r"(P\\d+)_"`; None: patients are unknown.
        options: Options of `GroundingDataset`.
    """

    required: ClassVar[tuple[str, ...]] = ("image", "label")
    default_templates = templates.CLASS

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = None,
        labels: Labels | None = None,
        patient: str | None = None,
        **options: Any,
    ) -> None:
        root = Path(data_path).expanduser()
        self.root = root if split is None else root / split
        self.labels = labels
        self.patients = PatientNames(patient)
        super().__init__(self.root, self.root, **options)

    @override
    def open_records(self, path: Path) -> Records:
        if not path.is_dir():
            known = [folder.name for folder in path.parent.glob("*/")] if path.parent.is_dir() else []
            raise DataError(f"data_path {path} is not a folder{hint(path.name, known)}")
        folders = {folder.name: folder for folder in sorted(path.iterdir()) if folder.is_dir()}
        labels = self.labels if self.labels is not None else list(folders)
        self.names = dict(labels) if isinstance(labels, dict) else {label: label for label in labels}
        for label in self.names:
            if label not in folders:
                raise ConfigError(f"labels: {path} has no folder '{label}'{hint(label, folders)}")
        suffixes = tuple(READERS.names())
        files = [(label, file) for label in self.names for file in sorted(folders[label].rglob("*")) if file.is_file()]
        images = [(label, file) for label, file in files if file.name.lower().endswith(suffixes)]
        if len(images) < len(files):
            others = next(file for _, file in files if not file.name.lower().endswith(suffixes))
            logger.warning("%s: %d files are not images, for example %s", path, len(files) - len(images), others)
        rows = [{"image": file.relative_to(path).as_posix(), "label": label} for label, file in images]
        return ListedRecords(path, rows, [str(file) for _, file in images])

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        question = self.draw_template(rng, labels=", ".join(self.names.values()))
        turns = [self.question_turn(question), answer_turn(self.names[row["label"]])]
        return Sample(turns, [self.read_image(row["image"])], group=self.patients.find(row["image"]))

    @override
    def summary(self) -> dict[str, Any]:
        """Return the folder, the number of images, and that of each class."""
        counts = {label: 0 for label in self.names}
        for index in range(len(self.records)):
            counts[self.records[index]["label"]] += 1
        return {**super().summary(), "images by class": counts}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write phantoms into the folders of two classes."""
        from mllm.dataset.phantoms.folders import write_class_folders

        return write_class_folders(folder, rows)
