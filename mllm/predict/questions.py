"""Dataset of questions without answers, for `mllm predict --batch`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.dataset.tables.values import is_empty
from mllm.predict.true_marks import true_marks
from mllm.structures import Sample


class Questions(VQADataset):
    """Rows of `VQADataset` in which `image` and `answer` are optional; an answer is not part of the prompt.

    Args:
        data_path: Table of the rows.
        image_folder: Folder of the images; None: that of the table.
        modality: Text before the question of rows without the field `modality`.
        reads_marks: The marks of a sample are those of the fields that `true_marks` reads. False: it has none.
        options: Further options of `ImageTextDataset`.
    """

    required = ("question",)
    patient_column = None
    has_answers = False

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        modality: str | None = None,
        reads_marks: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(data_path, image_folder, modality, **options)
        self.reads_marks = reads_marks

    def parse(self, row: dict[str, Any]) -> Sample:
        """Return the sample of a row; its answer is empty if the row has none."""
        image = row.get("image")
        sample = super().parse({**row, "image": [] if is_empty(image) else image, "answer": ""})
        return replace(sample, marks=true_marks(row, sample.images)) if self.reads_marks else sample

    def answer_of(self, value: Any) -> str:
        """Return an empty answer, because only the question is encoded."""
        return ""
