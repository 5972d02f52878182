"""Dataset of several labels of an image, from the columns of a table or from annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.annotations.objects import AnnotatedImage
from mllm.dataset.indices import from_zero
from mllm.dataset.single_image_dataset.grounding import NONE
from mllm.dataset.tables.records import ERROR, Records
from mllm.dataset.tables.values import is_empty
from mllm.dataset.tasks.annotated import TRUTH_VALUES, AnnotatedDataset
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS
from mllm.structures import Sample

Uncertain = Literal["refuse", "zeros", "ones", "ignore"]
_VALUES: dict[str, bool | None] = {**TRUTH_VALUES, "-1": None, "-1.0": None}
"""Values of a label: present, absent, or uncertain (None)."""


def label_value(value: Any, label: str) -> bool | None:
    """Return True for a present label, False for an absent or blank one, None for an uncertain one (-1).

    Raises:
        DataError: The value is none of 1, 0, -1 and blank.
    """
    text = str(value).strip().lower()
    if is_empty(value) and (not isinstance(value, str) or not text):
        return False  # a text such as NA says that the label is unknown
    if text not in _VALUES:
        raise DataError(f"label '{label}' must be 1, 0, -1 (uncertain) or blank, not {value!r}")
    return _VALUES[text]


def _is_uncertain(value: Any, label: str) -> bool:
    """Return True for an uncertain label; False also for a value that is refused, as an error of its row."""
    try:
        return label_value(value, label) is None
    except DataError:
        return False


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
                [index * len(labels) + number for index in range(len(records)) for number in self._certain(index)]
            )
            if not len(self.indices):
                raise DataError(f"{self.path}: all values of {', '.join(labels)} are uncertain")

    def _certain(self, index: int) -> list[int]:
        """Return the numbers of the labels with a certain value; the first one for a faulty row, which is counted."""
        row = self.records.row_or_error(index)
        if ERROR in row:
            return [0]
        return [number for number, label in enumerate(self.labels) if not _is_uncertain(row.get(label), label)]

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
        data_path, image_folder, options: See `AnnotatedDataset`. In VOC and COCO a label is present if the image has a
            box of it. A table needs `labels`: its columns, or a dict from columns to the texts that stand for them.
        per: 'image': one question for an image; the answer has the present labels, separated by `; `. 'label': one
            question for each label; the answer is yes or no.
        uncertain: Treatment of -1, named as in CheXpert (arXiv:1901.07031): 'zeros' (absent), 'ones' (present),
            'ignore' (the question is left out, with `per='label'`) or 'refuse' (the row cannot be used).
        none: Answer for an image without a present label (`per='image'`).
    """

    default_templates = templates.FINDINGS
    other_templates = (*templates.FINDINGS, *templates.PRESENCE)

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        *,
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
        super().__init__(data_path, image_folder, **options)

    @property
    @override
    def own_templates(self) -> tuple[str, ...]:
        return templates.PRESENCE if self.per == "label" else templates.FINDINGS

    @override
    def open_records(self, path: Path) -> Records:
        records = self.open_table(path)
        if not self.labels:
            raise ConfigError(f"labels is missing: name the columns of {path} that are labels")
        labels = tuple(self.used_labels())
        first = records.first_row()
        for label in labels:
            if first and label not in first:
                raise ConfigError(f"labels: {records.describe(0)} has no column '{label}'{hint(label, first)}")
        return PerLabelRecords(records, labels, self.uncertain == "ignore") if self.per == "label" else records

    def open_table(self, path: Path) -> Records:
        """Return a table with a row for each image or study."""
        return super().open_records(path)

    @override
    def rows_of(self, image: AnnotatedImage) -> list[dict[str, Any]]:
        present = {item.label for item in image.objects} | image.crowds
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
        if label not in row:
            raise DataError(f"field '{label}' is missing{hint(label, row)}")
        value = label_value(row[label], label)
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
