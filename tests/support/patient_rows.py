"""A dataset whose samples are given by the patients of its rows."""

from __future__ import annotations

from mllm.dataset.base import SampleDataset
from mllm.errors import DataError
from mllm.structures import Sample, Turn


class Rows(SampleDataset):
    """Text samples that contain their row and epoch; a row of the patient `unreadable` cannot be read."""

    def __init__(self, name: str, groups: list[str | None]) -> None:
        self.name, self.groups = name, groups

    def __len__(self) -> int:
        return len(self.groups)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        source = self.describe(index)
        turns = [Turn("user", f"{source}, epoch {epoch}")]
        return Sample(turns=turns, group=self.group(index), source=source)

    def describe(self, index: int, epoch: int = 0) -> str:
        return f"{self.name}, line {index + 1}"

    def group(self, index: int, epoch: int = 0) -> str | None:
        if self.groups[index] == "unreadable":
            raise DataError(f"{self.describe(index)}: not valid JSON")
        return self.groups[index]
