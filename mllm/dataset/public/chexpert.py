"""CheXpert: 224,316 chest X-rays of 65,240 patients with 14 labels (Irvin et al., arXiv:1901.07031)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from mllm.dataset.progress import with_progress
from mllm.dataset.public.official import Groups, Ids, check_columns, field, official_file, official_split, rows_of
from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import ERROR, Records
from mllm.dataset.tasks.annotated import Labels
from mllm.dataset.tasks.labels import MultiLabelDataset, Uncertain
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS

LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""Columns of the labels, in the order of the files."""
FILES = {
    "train": ("train.csv",),
    "valid": ("valid.csv",),
    "test": ("test_labels.csv", "groundtruth.csv", "test.csv"),
}
"""Official split -> names of its table."""
_PATIENT = re.compile(r"patient\d+")
STRATA = ("Sex", "Age", "AP/PA")
"""Columns that rows keep for figures by stratum."""
_STUDY = re.compile(r"(?:.*/)?((?:train|valid|test)/patient\d+/study\d+)")


@DATASETS.register_module()
class CheXpertDataset(MultiLabelDataset):
    """Findings in chest X-rays of CheXpert: 13 labels or `No Finding`.

    `data_path` is the folder `CheXpert-v1.0` or `CheXpert-v1.0-small` with `train.csv`, `valid.csv` and the folders of
    their images. The test split has one row for each study (`test_labels.csv`). A blank label was not mentioned and
    counts as absent; -1 is uncertain.

    Args:
        data_path: Folder of the dataset.
        split: 'train', 'valid' or 'test'.
        labels: Labels that are used; None: all except `No Finding`, which is the answer for none of them.
        per: See `MultiLabelDataset`.
        uncertain: 'zeros', 'ones' or 'ignore'; see `MultiLabelDataset`.
        level: 'image': one question for an image. 'study': one question for a study, with all of its images.
        views: 'frontal' leaves out lateral images; 'all' keeps them.
        options: Options of `GroundingDataset`.
    """

    has_columns = False

    def __init__(
        self,
        data_path: str | Path,
        split: str = "train",
        labels: Labels | None = None,
        per: Literal["image", "label"] = "image",
        uncertain: Uncertain = "zeros",
        level: Literal["image", "study"] = "image",
        views: Literal["frontal", "all"] = "frontal",
        **options: Any,
    ) -> None:
        root = Path(data_path).expanduser()
        self.official, self.level, self.views = official_split(split, tuple(FILES)) or "train", level, views
        if split == "test" and level == "image":
            raise ConfigError("the labels of split 'test' are those of studies: set level='study'")
        used = LABELS[1:] if labels is None else labels
        super().__init__(root, root, labels=used, per=per, uncertain=uncertain, none=LABELS[0], **options)

    @override
    def open_table(self, path: Path) -> Records:
        table = official_file(path, FILES[self.official], f"the labels of split {self.official}")
        records = Records(table)
        first = records.first_row()
        check_columns(records, LABELS if "Study" in first else ("Path", "Frontal/Lateral", *LABELS))
        rows, places, ids = PackedRows(), PackedRows(), Ids("Path" if "Path" in first else "Study")
        for indices in self._groups(records):
            if row := self._row(path, records, indices, ids, len(rows)):
                rows.append(row)
                places.append(records.describe(indices[0]))
        errors = ids.errors(lambda index: field(records[index], ids.column), records.describe)
        return ListedRecords(table, rows, places, f"of split '{self.official}'", errors)

    def _groups(self, records: Records) -> Iterable[Sequence[int]]:
        """Return the indices of the rows of the table for each row of the dataset, in the order of the first ones."""
        if self.level == "image":
            return ([index] for index in with_progress(range(len(records)), f"reading {records.path.name}"))
        groups = Groups()
        for index, row in rows_of(records):
            try:
                _check_readable(row)
                study = self._study(field(row, "Path") or field(row, "Study"))
            except DataError:
                groups.add(f"row {index}", index)  # a row of its own, which is an error
                continue
            if self._is_used(row):
                groups.add(study, index)
        return groups

    def _row(self, root: Path, records: Records, indices: Sequence[int], ids: Ids, number: int) -> dict[str, Any]:
        """Return row `number` of the dataset from rows of the table; empty if they have no image of these views."""
        entry: dict[str, Any] = {}
        for index in indices:
            row = records.row_or_error(index)
            try:
                _check_readable(row)
                study = self._study(field(row, "Path") or field(row, "Study"))
            except DataError as reason:
                return {ERROR: str(reason)}
            if not self._is_used(row):
                continue
            ids.add(field(row, ids.column), index, number)
            if not entry:
                patient = _PATIENT.search(study)
                columns = [*LABELS, *(column for column in STRATA if column in row)]
                entry = {**{column: row[column] for column in columns}, "patient": patient and patient[0], "image": []}
            if any(str(entry[label]) != str(row[label]) for label in LABELS) and ERROR not in entry:
                entry[ERROR] = f"{records.describe(index)} has other labels than this row of the same study"
            entry["image"] += self._images(root, row, study)
        return entry

    def _study(self, text: str) -> str:
        """Return `train/patient00001/study1`, without the name of the release."""
        match = _STUDY.match(text)
        if match is None:
            raise DataError(f"'{text}' is not a path like CheXpert-v1.0/train/patient00001/study1")
        return match[1]

    def _is_used(self, row: dict[str, Any]) -> bool:
        """Return False for a lateral image that is left out. A row of a study has several images."""
        return self.views == "all" or "Path" not in row or field(row, "Frontal/Lateral") != "Lateral"

    def _images(self, root: Path, row: dict[str, Any], study: str) -> list[str]:
        """Return the images of a row that is used, relative to the folder of the dataset."""
        if "Path" in row:
            return [f"{study}/{row['Path'].rpartition('/')[2]}"]
        pattern = "*frontal*" if self.views == "frontal" else "*"
        files = sorted((root / study).glob(f"{pattern}.jpg"))
        return [f"{study}/{file.name}" for file in files] or [f"{study}/view1_frontal.jpg"]

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.chest import write_chexpert

        return write_chexpert(folder, rows, LABELS)


def _check_readable(row: dict[str, Any]) -> None:
    """Raise `DataError` if a row of the table could not be read."""
    if ERROR in row:
        raise DataError(row[ERROR])
