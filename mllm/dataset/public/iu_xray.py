"""IU X-ray (Open-i): chest X-rays with their reports (Demner-Fushman et al., JAMIA 2016)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.public.official import Ids, field, official_file, official_table, rows_of
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answer_turn
from mllm.dataset.tables.json_stream import JsonStream
from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import ERROR, Records
from mllm.dataset.tables.text_files import open_text
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS
from mllm.structures import Sample

_REPORTS, _PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
_ANNOTATION = "annotation.json"


@DATASETS.register_module()
class IUXrayDataset(GroundingDataset):
    """Reports of chest X-rays of IU X-ray, one for each study.

    `data_path` holds `annotation.json` and `images/` as prepared for R2Gen (arXiv:2010.16056), which has splits; or
    `indiana_reports.csv`, `indiana_projections.csv` and `images/images_normalized/`, which have none.

    Args:
        data_path: Folder of the dataset.
        split: 'train', 'val' or 'test' of `annotation.json`; None: all.
        section: 'findings' or 'impression' of `indiana_reports.csv`. `annotation.json` has one report, which are the
            findings. Studies without the section are left out, and counted in the summary.
        views: 'frontal' leaves out lateral images of `indiana_projections.csv`; 'all' keeps them.
        options: Options of `GroundingDataset`.
    """

    has_columns = False
    default_templates = templates.REPORT

    def __init__(
        self,
        data_path: str | Path,
        split: str | None = None,
        section: Literal["findings", "impression"] = "findings",
        views: Literal["frontal", "all"] = "all",
        **options: Any,
    ) -> None:
        root = Path(data_path).expanduser()
        self.split, self.section, self.views = split, section, views
        self.without_section = 0
        super().__init__(root, root, **options)

    @override
    def open_records(self, path: Path) -> Records:
        if (path / _ANNOTATION).is_file():
            return self._annotated(path / _ANNOTATION)
        reports = official_file(path, (_REPORTS, _ANNOTATION), "the reports")
        if self.split is not None:
            raise ConfigError(f"split='{self.split}': {reports} has no splits; use PatientSplit")
        return self._tables(path, reports)

    def _annotated(self, file: Path) -> Records:
        """Return the studies of `annotation.json`."""
        if self.section != "findings":
            raise ConfigError(f"section='{self.section}': {file} has one report for each study, the findings")
        rows, places, ids = PackedRows(), PackedRows(), Ids("id")
        splits = list[str]()
        try:
            with open_text(file) as text:
                for name, entries in JsonStream(text).members(lambda key: True):
                    splits.append(name)
                    for number, entry in enumerate(entries, start=1):
                        if self.split in (None, name):
                            row = _row_of_entry(entry)
                            ids.add(str(row.get("patient")), len(rows), -1 if ERROR in row else len(rows))
                            rows.append(row)
                            places.append(f"{file}, {name}, entry {number}")
            if not splits:
                raise ValueError("it has no list")
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{file} is not a file of R2Gen, an object with a list for each split ({error})") from error
        if self.split is not None and self.split not in splits:
            raise ConfigError(f"{file} has no split '{self.split}'{hint(self.split, splits)}")
        errors = ids.errors(lambda number: str(rows[number].get("patient")), places.__getitem__)
        return ListedRecords(file, rows, places, errors=errors)

    def _tables(self, root: Path, reports: Path) -> Records:
        """Return the studies of the two tables."""
        records = official_table(reports, ("uid", "findings", "impression"))
        table = official_file(root, (_PROJECTIONS,), "the images of the reports")
        projections = official_table(table, ("uid", "filename", "projection"))
        images: dict[str, list[str]] = {}
        rows, places, ids = PackedRows(), PackedRows(), Ids("uid")
        for index, row in rows_of(projections):
            if ERROR in row:  # a row of its own, whose study is unknown
                rows.append(row)
                places.append(projections.describe(index))
            elif self.views == "all" or field(row, "projection") == "Frontal":
                images.setdefault(field(row, "uid"), []).append(f"images/images_normalized/{field(row, 'filename')}")
        for index, row in rows_of(records):
            if ERROR in row:
                rows.append(row)
                places.append(records.describe(index))
                continue
            study, answer = field(row, "uid"), " ".join(field(row, self.section).split())
            if not answer or study not in images:
                self.without_section += 1
                continue
            ids.add(study, index, len(rows))
            rows.append({"image": images[study], "answer": answer, "patient": study})
            places.append(records.describe(index))
        errors = ids.errors(lambda index: field(records[index], ids.column), records.describe)
        return ListedRecords(reports, rows, places, errors=errors)

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        images = [self.read_image(file) for file in row["image"]]
        question = self.draw_template(rng, section=self.section)
        return Sample([self.question_about(images, question), answer_turn(row["answer"])], images)

    @override
    def summary(self) -> dict[str, Any]:
        """Return the file, the number of studies, and that of studies without the section or without an image."""
        return {**super().summary(), f"studies without {self.section} or image": self.without_section}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        from mllm.dataset.phantoms.chest import write_iu_xray

        return write_iu_xray(folder, rows)


def _row_of_entry(entry: Any) -> dict[str, Any]:
    """Return the row of an entry of `annotation.json`."""
    try:
        images = [f"images/{image}" for image in entry["image_path"]]
        return {"image": images, "answer": entry["report"].strip(), "patient": entry["id"]}
    except (KeyError, TypeError, AttributeError) as error:
        return {ERROR: f"an entry needs id, report and image_path ({type(error).__name__}: {error})"}
