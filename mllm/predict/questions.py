"""Dataset of questions without answers, for `mllm predict --batch`."""

from __future__ import annotations

from typing import Any

from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.dataset.tables.values import is_empty
from mllm.structures import Sample


class Questions(VQADataset):
    """Rows of `VQADataset` in which `image` and `answer` are optional; an answer is not part of the prompt."""

    required = ("question",)
    group_field = None
    has_answers = False

    def parse(self, row: dict[str, Any]) -> Sample:
        """Return the sample of a row; its answer is empty if the row has none."""
        image = row.get("image")
        return super().parse({**row, "image": [] if is_empty(image) else image, "answer": ""})

    def answer_of(self, value: Any) -> str:
        """Return an empty answer, because only the question is encoded."""
        return ""
