"""Questions about images without answers, as rows of a file."""

from __future__ import annotations

from typing import Any

from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.structures import Sample


class Questions(VQADataset):
    """What `VQADataset` reads, with or without `image` and `answer`; an answer is left out of what is asked."""

    required = ("question",)
    group_field = None

    def parse(self, row: dict[str, Any]) -> Sample:
        """The sample of a row, its answer empty where the row has none."""
        return super().parse({**row, "image": row.get("image") or [], "answer": row.get("answer") or ""})
