"""Rows of an evaluation in the order of its split, which are read again for each pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Row = dict[str, Any]
"""A row of `predictions.jsonl`."""


class Rows:
    """Rows of an evaluation, each with the index of its row in the split.

    Args:
        numbered: Function that reads indices and rows in the order of the split, for each pass.
        count: Number of rows.
    """

    def __init__(self, numbered: Callable[[], Iterable[tuple[int, Row]]], count: int) -> None:
        self.numbered, self._count = numbered, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.numbered())

    def with_fields(self, fields: Callable[[int, Row], Row]) -> Rows:
        """Return the rows with additional fields.

        Args:
            fields: Function of the index of a row and the row, which returns the fields to add.
        """
        return Rows(lambda: ((index, {**row, **fields(index, row)}) for index, row in self.numbered()), len(self))


class Indices:
    """Set of indices of rows, in one byte for each row of the split.

    Args:
        rows: Number of rows of the split.
        members: The indices.
    """

    def __init__(self, rows: int, members: Iterable[int]) -> None:
        self._flags = bytearray(rows)
        for index in members:
            self._flags[index] = 1

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and bool(self._flags[index])

    def __len__(self) -> int:
        return sum(self._flags)
