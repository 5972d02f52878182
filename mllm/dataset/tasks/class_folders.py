"""Dataset of classes of images in folders, one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.folder_files import OtherFiles, files_below, is_hidden
from mllm.dataset.patient_names import PatientNames
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answer_turn
from mllm.dataset.tables.listed import FileRecords
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import Records
from mllm.dataset.tasks.annotated import Labels
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS, READERS
from mllm.structures import Sample

_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev")
"""Usual names of the folders of splits, in lower case."""


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
    has_columns = False
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
        folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
        labels = self.labels if self.labels is not None else folders
        self.names = dict(labels) if isinstance(labels, dict) else {label: label for label in labels}
        for label in self.names:
            if label not in folders:
                raise ConfigError(f"labels: {path} has no folder '{label}'{hint(label, folders)}")
        if self.labels is None:
            self._check_names(path, folders)
        rows, self.counts = PackedRows(), dict.fromkeys(self.names, 0)
        others, suffixes = OtherFiles(path), tuple(READERS.names())
        for label in self.names:
            for name in files_below(path / label):
                if name.lower().endswith(suffixes):
                    rows.append({"image": f"{label}/{name}", "label": label})
                    self.counts[label] += 1
                else:
                    others.add(f"{label}/{name}")
        others.report("files are not images")
        empty = OtherFiles(path)
        for label in (label for label, count in self.counts.items() if not count):
            empty.add(label)
        empty.report("folders of classes have no image")
        outside = OtherFiles(path)
        for entry in sorted(path.iterdir()):
            if entry.name.lower().endswith(suffixes) and not entry.is_dir() and not is_hidden(entry.name):
                outside.add(entry.name)
        outside.report("images are outside of the folders of classes")
        return FileRecords(path, rows)

    def _check_names(self, path: Path, folders: Sequence[str]) -> None:
        """Raise `ConfigError` if the folders are those of splits, whose names would be learned as classes."""
        splits = [name for name in folders if name.lower() in _SPLITS]
        if splits and len(splits) == len(folders):
            raise ConfigError(
                f"data_path {path} has the folders {', '.join(splits)}, which are splits and not classes: set "
                f"split='{splits[0]}', or name the folders in labels"
            )

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        question = self.draw_template(rng, labels=", ".join(self.names.values()))
        turns = [self.question_turn(question), answer_turn(self.names[row["label"]])]
        return Sample(turns, [self.read_image(row["image"])], group=self.patients.find(row["image"]))

    @override
    def summary(self) -> dict[str, Any]:
        """Return the folder, the number of images, and that of each class."""
        return {**super().summary(), "images by class": self.counts}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write phantoms into the folders of two classes."""
        from mllm.dataset.phantoms.folders import write_class_folders

        return write_class_folders(folder, rows)
