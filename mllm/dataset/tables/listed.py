"""Rows in memory with their locations, for datasets whose rows are joined from several files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from mllm.dataset.indices import from_zero
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import ERROR, Records
from mllm.errors import DataError


class ListedRecords(Records):
    """Rows of a list. Reading a row with the field `ERROR` raises `DataError` with its reason.

    A fault of a row that is found while the files of a dataset are joined is thus an error of this row, which
    `on_error='skip'` counts.

    Args:
        path: File or folder from which the rows come.
        rows: The rows.
        locations: Location of each row for messages: `FILE, line N`. None: the number of the row in `path`.
        choice: Choice of the rows in the message about none, such as `of split 'test'`. Empty: all rows of `path`.
        errors: Reasons why rows cannot be used, by index, for rows without the field `ERROR`.

    Raises:
        DataError: There is no row.
    """

    def __init__(
        self,
        path: Path,
        rows: Sequence[dict[str, Any]],
        locations: Sequence[str] | None = None,
        choice: str = "",
        errors: Mapping[int, str] | None = None,
    ) -> None:
        assert locations is None or len(locations) == len(rows)
        if not rows:
            raise DataError(f"{path} has no row{' ' * bool(choice)}{choice} that can be used")
        self.path, self.locations, self.errors = path, locations, errors or {}
        self.rows = rows if isinstance(rows, PackedRows) else PackedRows(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @override
    def __getitem__(self, index: int) -> dict[str, Any]:
        index = from_zero(index, len(self))
        row: dict[str, Any] = self.rows[index]
        row[ERROR] = row.get(ERROR) or self.errors.get(index)
        if row[ERROR]:
            raise DataError(row[ERROR])
        del row[ERROR]
        return row

    @override
    def describe(self, index: int) -> str:
        index = from_zero(index, len(self))
        return f"{self.path}, line {index + 1}" if self.locations is None else self.locations[index]


class FileRecords(ListedRecords):
    """Rows with the field `image`, the name of a file below a folder, which is their location.

    Args:
        path: The folder.
        rows: The rows.
    """

    @override
    def describe(self, index: int) -> str:
        return os.path.join(self.path, self.rows[from_zero(index, len(self))]["image"])
