"""Dataset of questions without answers, for `mllm predict --batch`."""

from __future__ import annotations

from typing import Any

from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.structures import Sample


class Questions(VQADataset):
    """Rows of `VQADataset` in which `image` and `answer` are optional; an answer is not part of the prompt."""

    required = ("question",)
    group_field = None

    def parse(self, row: dict[str, Any]) -> Sample:
        """Return the sample of a row; its answer is empty if the row has none."""
        return super().parse({**row, "image": row.get("image") or [], "answer": row.get("answer") or ""})
