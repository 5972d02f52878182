"""Base class of datasets of text: one conversation without images per row of a table."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import override

from mllm.dataset.base import RecordDataset
from mllm.dataset.indices import from_zero
from mllm.errors import DataError, with_location
from mllm.structures import Sample, Turn


class TextDataset(RecordDataset):
    """Rows of a table that are read as conversations without images."""

    has_measures = False
    indices: Sequence[int] | None = None
    """Numbers of the rows of the table that are used; None: all."""

    @abstractmethod
    def turns_of(self, row: Mapping[str, Any]) -> list[Turn]:
        """Return the turns of a row. Raise `DataError` if it has no conversation."""

    def __len__(self) -> int:
        return len(self.records) if self.indices is None else len(self.indices)

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the conversation of a row; raises `DataError` with the location of a row that cannot be used."""
        return replace(self.inspect(index), source=self.describe(index))

    @override
    def inspect(self, index: int) -> Sample:
        row = self.records[self._number(index)]
        try:
            return Sample(turns=self.turns_of(row), group=self.row_group(row))
        except DataError as error:
            raise with_location(error, self.describe(index)) from error

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return self.records.describe(self._number(index))

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        try:
            return self.row_group(self.records[self._number(index)])
        except DataError as error:
            raise with_location(error, self.describe(index)) from error

    def _number(self, index: int) -> int:
        """Return the number of a row in the table."""
        index = from_zero(index, len(self))
        return index if self.indices is None else int(self.indices[index])
