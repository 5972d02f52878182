"""Rows in memory, compressed in blocks."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from typing_extensions import override

from mllm.dataset.indices import from_zero

BLOCK = 64
"""Rows of a block, which is decompressed for each of its rows that does not follow another one: about 0.1 ms."""


class PackedRows(Sequence[Any]):
    """Sequence of rows of plain values, to which rows can be appended.

    A row of a table takes 16 to 33 bytes, with the names of many files 220; as Python objects, it takes 400 to 1,700.
    Each reading returns a new object, so that a change of it does not change the sequence.

    Args:
        rows: The first rows.
    """

    def __init__(self, rows: Iterable[Any] = ()) -> None:
        self._blocks: list[bytes] = []
        self._tail: list[bytes] = []
        """Rows of the incomplete last block."""
        self._last: tuple[int, list[bytes]] = -1, []
        """Number and rows of the block that was read last."""
        for row in rows:
            self.append(row)

    def append(self, row: Any) -> None:
        """Add a row at the end."""
        self._tail.append(pickle.dumps(row, pickle.HIGHEST_PROTOCOL))
        if len(self._tail) == BLOCK:
            self._blocks.append(zlib.compress(pickle.dumps(self._tail, pickle.HIGHEST_PROTOCOL), 1))
            self._tail = []

    def __len__(self) -> int:
        return len(self._blocks) * BLOCK + len(self._tail)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    @override
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number, place = divmod(from_zero(index, len(self)), BLOCK)
        return pickle.loads(self._block(number)[place])

    @override
    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self._blocks) + 1):
            yield from map(pickle.loads, self._block(number))

    def _block(self, number: int) -> list[bytes]:
        """Return the rows of a block, each of them pickled."""
        if number == len(self._blocks):
            return self._tail
        last, rows = self._last  # read once, because another thread may replace it
        if last != number:
            rows = pickle.loads(zlib.decompress(self._blocks[number]))
            self._last = number, rows
        return rows
