"""Echocardiograms of a user: DICOM cines or videos, with a table of their frames and measures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from mllm.dataset.base import ImageTextDataset
from mllm.dataset.echo.cine import FRAMES_NEEDED, MEASURES, PHASES, conversation, count_unknown, known_number
from mllm.dataset.phantoms.echo_folders import write_echonet
from mllm.errors import DataError
from mllm.files import replaced_file
from mllm.registry import DATASETS
from mllm.structures import Sample


@DATASETS.register_module()
class DicomCineDataset(ImageTextDataset):
    """End-diastolic and end-systolic frames of the cines of a table with EF (%), EDV and ESV (mL).

    A row has `file` (a DICOM cine or a video below `image_folder`), `ED` and `ES` (numbers of frames, from 0), at least
    one of `EF`, `EDV` and `ESV`, and optionally `patient`. A patient must not be in two splits; without `patient`, each
    file is a patient.
    """

    required: ClassVar[tuple[str, ...]] = ("file",)
    optional: ClassVar[tuple[str, ...]] = (*PHASES, *MEASURES)

    @override
    def parse(self, row: dict[str, Any]) -> Sample:
        frames = {phase: _frame(row, phase) for phase in PHASES}
        if len(set(frames.values())) < len(frames):
            raise DataError(f"ED and ES are both frame {frames['ED']}")
        measures = _measures(row)
        if all(map(math.isnan, measures.values())):
            raise DataError(f"none of {', '.join(MEASURES)} is known")
        images = self.read_images(str(row["file"]), frames=list(frames.values()))
        return Sample(conversation(list(frames), measures), images, list(frames), measures=measures)

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        try:
            return _measures(self.row(index))
        except DataError as error:
            raise DataError(f"{self.describe(index)}: {error}") from error

    @override
    def row_group(self, row: Mapping[str, Any]) -> str | None:
        return super().row_group(row) or str(row.get("file"))

    @override
    def summary(self) -> dict[str, Any]:
        """Return the numbers of readable and unreadable rows, and of rows in which each measure is unknown."""
        readable = []
        for index in range(len(self)):
            try:
                readable.append(self.measures(index))
            except DataError:
                continue  # handled during training, according to on_error
        return {
            "file": str(self.records.path),
            "used": len(readable),
            "unreadable": len(self) - len(readable),
            "unknown": count_unknown(readable),
        }

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write generated videos and their table."""
        patients = write_echonet(folder, {"TRAIN": rows}, seed=tuple(folder.name.encode()), frames=30)
        with replaced_file(folder / "rows.jsonl") as file:
            for patient in patients:
                frames = {"ED": patient.ed, "ES": patient.es}
                row = {"file": f"Videos/{patient.name}.avi", **frames, **patient.heart.measures}
                file.write(json.dumps(row) + "\n")
        return {"data_path": str(folder / "rows.jsonl"), "image_folder": str(folder)}


def _frame(row: dict[str, Any], phase: str) -> int:
    """Return the number of a frame in a row, from 0."""
    value = row.get(phase)
    if value is None or value == "":
        raise DataError(f"field '{phase}' is missing or empty: {FRAMES_NEEDED}, in the fields ED and ES")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not number.is_integer() or number < 0:
        raise DataError(f"field '{phase}' must be the number of a frame from 0, not {value!r}")
    return int(number)


def _measures(row: dict[str, Any]) -> dict[str, float]:
    return {name: known_number(row.get(name), name) for name in MEASURES}
