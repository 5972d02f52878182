"""Rows in memory with their locations, for datasets whose rows are joined from several files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from mllm.dataset.indices import from_zero
from mllm.dataset.tables.records import Records
from mllm.errors import DataError


class ListedRecords(Records):
    """Rows of a list.

    Args:
        path: File or folder from which the rows come.
        rows: The rows.
        locations: Location of each row for messages: `FILE, line N`. None: the number of the row in `path`.

    Raises:
        DataError: There is no row.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]], locations: Sequence[str] | None = None) -> None:
        assert locations is None or len(locations) == len(rows)
        if not rows:
            raise DataError(f"{path} has no row that can be used")
        self.path, self.rows, self.locations = path, rows, locations

    def __len__(self) -> int:
        return len(self.rows)

    @override
    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.rows[from_zero(index, len(self))])

    @override
    def describe(self, index: int) -> str:
        index = from_zero(index, len(self))
        return f"{self.path}, line {index + 1}" if self.locations is None else self.locations[index]
