"""Rows that messages name: by file and line, and in a private run by split and number."""

from __future__ import annotations

from typing import NamedTuple

from mllm.dataset.base import SampleDataset
from mllm.private_messages import PublicText, current_row, is_private


class Row(NamedTuple):
    """Row of a dataset with its split and number."""

    dataset: SampleDataset
    number: int
    """Index in the dataset."""
    position: PublicText
    """Split and number of the row, for messages of private runs."""

    @classmethod
    def current(cls, dataset: SampleDataset, index: int) -> Row:
        """Return the row that is being read."""
        return cls(dataset, index, current_row())

    @property
    def location(self) -> str:
        """Return `FILE, line N`."""
        return self.dataset.describe(self.number)

    @property
    def name(self) -> str:
        """Return the position in a private run, and else the location, for messages."""
        return self.position if is_private() else self.location
