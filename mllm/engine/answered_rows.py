"""Rows of an evaluation in the order of its split, which are read again for each pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mllm.metrics.parts import PartFile

Row = dict[str, Any]
"""A row of `predictions.jsonl`."""


class Rows:
    """Rows of an evaluation, each with the index of its row in the split; 8 bytes a row are in memory.

    Args:
        indices: Indices of the rows in the split, increasing, [N].
        read: Function of some of the indices, which returns their rows.
    """

    def __init__(self, indices: np.ndarray, read: Callable[[np.ndarray], Iterable[Row]]) -> None:
        self._indices, self._read = indices, read

    @classmethod
    def of(cls, rows: Sequence[tuple[int, Row]]) -> Rows:
        """Return rows in memory, given as pairs of the index in the split and the row."""
        known = dict(rows)
        return cls(np.array([*known], np.int64), lambda indices: map(known.__getitem__, indices.tolist()))

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._read(self._indices))

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """Yield the index of each row in the split, and the row."""
        return zip(self._indices.tolist(), self, strict=True)

    def chosen(self, positions: np.ndarray) -> Iterable[Row]:
        """Return the rows at some positions among these rows, [M], in the order of the positions."""
        return self._read(self._indices[positions])

    def with_fields(self, fields: Callable[[int, Row], Row]) -> Rows:
        """Return the rows with additional fields.

        Args:
            fields: Function of the index of a row in the split and the row, which returns the fields to add.
        """

        def read(indices: np.ndarray) -> Iterator[Row]:
            for index, row in zip(indices.tolist(), self._read(indices), strict=True):
                yield {**row, **fields(index, row)}

        return Rows(self._indices, read)


class StoredFields:
    """Additional fields of rows in a temporary file; 12 bytes a row are in memory.

    Args:
        rows: Number of rows of the split.
    """

    def __init__(self, rows: int) -> None:
        self._numbers, self._file = np.full(rows, -1, np.int32), PartFile()

    def get(self, index: int) -> Row | None:
        """Return the fields of a row of the split; None if they were not added."""
        number = int(self._numbers[index])
        fields: Row | None = None if number < 0 else self._file.part(number)
        return fields

    def add(self, index: int, fields: Row) -> None:
        """Add the fields of a row of the split."""
        self._numbers[index] = len(self._file)
        self._file.append(fields)


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
