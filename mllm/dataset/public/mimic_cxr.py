"""MIMIC-CXR and MIMIC-CXR-JPG: 377,110 chest X-rays with their reports (Johnson et al., 2019)."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.progress import with_progress
from mllm.dataset.public.official import (
    Groups,
    Ids,
    field,
    no_row,
    official_file,
    official_split,
    official_table,
    rows_of,
)
from mllm.dataset.public.report_text import last_paragraph, sections
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answer_turn
from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import ERROR, Records
from mllm.dataset.tables.text_files import read_text_file
from mllm.dataset.tasks.annotated import Labels
from mllm.dataset.tasks.labels import MultiLabelDataset, Uncertain
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import Sample

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""Columns of the labels, in the order of the files."""
SPLITS = ("train", "validate", "test")
FRONTAL = ("AP", "PA")
_SUFFIXES = (".jpg", ".dcm")
Views = Literal["frontal", "all"]


@dataclass(frozen=True)
class _Study:
    """A study with the names of its images without suffix."""

    patient: str
    study: str
    place: str
    """Location of its first row for messages."""
    images: list[str]
    error: str

    @property
    def folder(self) -> str:
        """Folder of the images: `files/p10/p10000032/s50414267`."""
        return f"files/p{self.patient[:2]}/p{self.patient}/s{self.study}"


class Studies:
    """Studies of a split, in the order of the table of splits.

    Args:
        root: Folder of the dataset.
        split: The split; None: all.
        views: 'frontal': images from the front only.
    """

    def __init__(self, root: Path, split: str | None, views: Views) -> None:
        table = official_file(root, ("mimic-cxr-2.0.0-split.csv",), "the official splits")
        chosen = _Views(root) if views == "frontal" else None  # before the other table, so that one is in memory
        self._records = official_table(table, ("dicom_id", "study_id", "subject_id", "split"))
        self._groups, ids, count = Groups(), Ids("dicom_id"), 0
        unreadable, without_view = list[int](), dict[int, str]()
        for index, row in rows_of(self._records):
            if ERROR in row:
                unreadable.append(count)
                self._groups.add(f"row {index}", index)  # a row of its own, whose study is unknown
            elif split is None or field(row, "split") == split:
                image = field(row, "dicom_id")
                is_used = True if chosen is None else chosen.is_frontal(image)
                if is_used is False:
                    continue
                if chosen is not None and is_used is None:
                    without_view[count] = chosen.error(image)
                ids.add(image, index, count)
                self._groups.add(field(row, "study_id"), index)
            else:
                continue
            count += 1
        errors = ids.errors(lambda i: field(self._records[i], "dicom_id"), self._records.describe, True) | without_view
        self._errors: dict[int, str] = {}
        for place, error in errors.items():
            self._errors.setdefault(self._groups.number_of(place), error)
        self.unreadable = [self._groups.number_of(place) for place in unreadable]
        """Numbers of the rows of the table of splits that cannot be read: studies without an image."""

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, number: int) -> _Study:
        indices = self._groups[number]
        rows = [self._records.row_or_error(index) for index in indices]
        if ERROR in rows[0]:
            return _Study("", "", self._records.describe(indices[0]), [], rows[0][ERROR])
        patient, study = field(rows[0], "subject_id"), field(rows[0], "study_id")
        images = [field(row, "dicom_id") for row in rows]
        return _Study(patient, study, self._records.describe(indices[0]), images, self._errors.get(number, ""))

    def find(self, study: str) -> _Study | None:
        """Return the study with an id; None if it is not in the split."""
        number = self._groups.find(study)
        return None if number is None else self[number]


def _split(split: str | None) -> str:
    """Return the name of a split for the message about no row."""
    return "" if split is None else f"of split '{split}'"


class _Views:
    """Views of the images. An image takes 9 bytes: names are compared by hashes of 64 bits.

    Args:
        root: Folder of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self._table = official_file(root, ("mimic-cxr-2.0.0-metadata.csv",), "the views; views='all' does not need it")
        hashes, frontal, self._unreadable = array("q"), array("b"), ""
        for _, row in rows_of(official_table(self._table, ("dicom_id", "ViewPosition"))):
            if ERROR in row:
                self._unreadable = self._unreadable or row[ERROR]
                continue
            hashes.append(hash(field(row, "dicom_id")))
            frontal.append(field(row, "ViewPosition") in FRONTAL)
        names, is_frontal = np.frombuffer(hashes, np.int64), np.frombuffer(frontal, np.bool_)
        order = np.lexsort((is_frontal, names))  # the last one of equal names is frontal if one of them is
        self._names, self._is_frontal = names[order], is_frontal[order]

    def is_frontal(self, image: str) -> bool | None:
        """Return True for an image from the front, None for one without a row."""
        place = int(np.searchsorted(self._names, value := hash(image), side="right")) - 1
        return bool(self._is_frontal[place]) if place >= 0 and self._names[place] == value else None

    def error(self, image: str) -> str:
        """Return the error of a study with an image without a row."""
        return no_row("dicom_id", image, self._table, self._unreadable)


def image_paths(root: Path, study: _Study) -> list[str]:
    """Return the images of a study relative to the folder: `.jpg` of MIMIC-CXR-JPG, or `.dcm` of MIMIC-CXR."""
    stem = f"{root}/{study.folder}/{study.images[0]}"  # pathlib would keep the parts of each path in memory
    suffix = next((suffix for suffix in _SUFFIXES if os.path.isfile(f"{stem}{suffix}")), ".jpg")
    return [f"{study.folder}/{name}{suffix}" for name in study.images]


@DATASETS.register_module()
class MIMICCXRDataset(GroundingDataset):
    """Reports of chest X-rays of MIMIC-CXR, one for each study.

    `data_path` is the folder of MIMIC-CXR-JPG or of MIMIC-CXR, with `files/p10/p10000032/s50414267/*.jpg` (or `.dcm`),
    `mimic-cxr-2.0.0-split.csv` and `mimic-cxr-2.0.0-metadata.csv` (or `.csv.gz`). The reports are
    `files/p10/p10000032/s50414267.txt` of `mimic-cxr-reports.zip`.

    Args:
        data_path: Folder of the dataset.
        split: 'train', 'validate' or 'test'; None: all.
        section: 'findings', 'impression', or 'both', which are learned with their headings. Studies without the section
            are left out, and counted in the summary. 'any': the impression, else the findings, else the last
            paragraph.
        views: 'frontal' (AP and PA) leaves out lateral images; 'all' keeps them.
        images: 'first' image of a study, or 'all'.
        reports: Folder with the `files` of the reports; None: `data_path`.
        options: Options of `GroundingDataset`.
    """

    has_columns = False
    default_templates = templates.REPORT

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = "train",
        section: Literal["findings", "impression", "both", "any"] = "findings",
        views: Views = "frontal",
        images: Literal["first", "all"] = "first",
        reports: str | Path | None = None,
        **options: Any,
    ) -> None:
        root = Path(data_path).expanduser()
        self.official, self.section, self.views, self.images = official_split(split, SPLITS), section, views, images
        self.reports = root if reports is None else Path(reports).expanduser()
        self.without_section = 0
        super().__init__(root, root, **options)

    @override
    def open_records(self, path: Path) -> Records:
        rows, places, chosen = PackedRows(), PackedRows(), Studies(path, self.official, self.views)
        for number in with_progress(range(len(chosen)), "reading reports"):
            study = chosen[number]
            if not study.images:
                rows.append({ERROR: study.error})
                places.append(study.place)
                continue
            images = image_paths(path, study)
            row: dict[str, Any] = {"image": images if self.images == "all" else images[:1], "patient": study.patient}
            file = f"{self.reports}/{study.folder}.txt"
            if study.error:
                row[ERROR] = study.error
            if not os.path.isfile(file):
                row[ERROR] = f"report {file} does not exist"
            else:
                try:
                    row["answer"] = self._answer(read_text_file(Path(file)))
                except DataError as error:
                    row[ERROR] = str(error)
            if row.get("answer", "") or ERROR in row:
                rows.append(row)
                places.append(study.place)
            else:
                self.without_section += 1
        return ListedRecords(path, rows, places, _split(self.official))

    def _answer(self, report: str) -> str:
        """Return the part of a report that is learned; empty if the report does not have it."""
        parts = sections(report)
        if self.section == "any":
            return parts.get("impression") or parts.get("findings") or last_paragraph(report)
        if self.section == "both":
            both = "findings" in parts and "impression" in parts
            return f"Findings: {parts['findings']}\nImpression: {parts['impression']}" if both else ""
        return parts.get(self.section, "")

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        part = {"both": "findings and the impression", "any": "impression"}.get(self.section, self.section)
        question = self.draw_template(rng, section=part)
        images = [self.read_image(file) for file in row["image"]]
        return Sample([self.question_about(images, question), answer_turn(row["answer"])], images)

    @override
    def summary(self) -> dict[str, Any]:
        """Return the folder, the number of studies, and that of studies without the section."""
        return {**super().summary(), f"studies without {self.section}": self.without_section}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.chest import write_mimic_cxr

        return write_mimic_cxr(folder, rows, LABELS)


@DATASETS.register_module()
class MIMICCXRLabelDataset(MultiLabelDataset):
    """Findings in chest X-rays of MIMIC-CXR-JPG, one row for each study: 13 labels or `No Finding`.

    `data_path` is the folder of `MIMICCXRDataset` with `mimic-cxr-2.0.0-chexpert.csv` (or `-negbio.csv`). A blank label
    was not mentioned and counts as absent; -1 is uncertain.

    Args:
        data_path: Folder of the dataset.
        split: 'train', 'validate' or 'test'; None: all.
        labeler: 'chexpert' or 'negbio', the program that read the labels from the reports.
        labels: Labels that are used; None: all except `No Finding`.
        per: See `MultiLabelDataset`.
        uncertain: 'zeros', 'ones' or 'ignore'; see `MultiLabelDataset`.
        views: 'frontal' leaves out lateral images; 'all' keeps them.
        images: 'first' image of a study, or 'all'.
        options: Options of `GroundingDataset`.
    """

    has_columns = False

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = "train",
        labeler: Literal["chexpert", "negbio"] = "chexpert",
        labels: Labels | None = None,
        per: Literal["image", "label"] = "image",
        uncertain: Uncertain = "zeros",
        views: Views = "frontal",
        images: Literal["first", "all"] = "first",
        **options: Any,
    ) -> None:
        root = Path(data_path).expanduser()
        self.official, self.labeler, self.views, self.images = official_split(split, SPLITS), labeler, views, images
        used = [label for label in LABELS if label != "No Finding"] if labels is None else labels
        super().__init__(root, root, labels=used, per=per, uncertain=uncertain, none="No Finding", **options)

    @override
    def open_table(self, path: Path) -> Records:
        table = official_file(path, (f"mimic-cxr-2.0.0-{self.labeler}.csv",), "the labels")
        records = official_table(table, ("subject_id", "study_id", *LABELS))
        studies = Studies(path, self.official, self.views)
        rows, places, ids = PackedRows(), PackedRows(), Ids("study_id")
        for index, row in rows_of(records):
            if ERROR in row:
                rows.append(row)
                places.append(records.describe(index))
                continue
            study = studies.find(field(row, "study_id"))
            if study is None:
                continue
            images = image_paths(path, study)
            labels = {label: row[label] for label in LABELS}
            image = images if self.images == "all" else images[:1]
            ids.add(study.study, index, len(rows))
            rows.append({"image": image, "patient": study.patient, ERROR: study.error, **labels})
            places.append(records.describe(index))
        for study in map(studies.__getitem__, studies.unreadable):
            rows.append({ERROR: study.error})
            places.append(study.place)
        errors = ids.errors(lambda index: field(records[index], ids.column), records.describe)
        return ListedRecords(table, rows, places, _split(self.official), errors)

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.chest import write_mimic_cxr

        return write_mimic_cxr(folder, rows, LABELS)
