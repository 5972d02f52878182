"""Windows of the rows of a split, which are answered together."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np


class Windows:
    """Windows of the rows of a split, in 8 bytes for each window and, with groups, for each row.

    Args:
        starts: Number of rows before each window, and of all rows, [W + 1].
        order: The rows, window after window, [N]; None: they are in the order of the split.
    """

    def __init__(self, starts: Sequence[int], order: np.ndarray | None = None) -> None:
        self.starts, self._order = starts, order

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Sequence[int]]:
        return map(self.rows, range(len(self)))

    def rows(self, number: int) -> Sequence[int]:
        """Return the indices of the rows of a window."""
        start, end = self.starts[number], self.starts[number + 1]
        if self._order is None:
            return range(start, end)
        rows: list[int] = self._order[start:end].tolist()
        return rows


def windows_of(rows: int, size: int, groups: Sequence[int] | np.ndarray | None = None) -> Windows:
    """Divide the indices of the rows of a split into windows.

    Args:
        rows: Number of rows.
        size: Maximum number of rows of a window.
        groups: Number of the group of each row. Rows of a group follow each other, and are in one window if it has room
            for them. None: windows are consecutive rows.
    """
    if groups is None:
        return Windows([*range(0, rows, size), rows] if rows else [0])
    _, first, numbers = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    places = np.argsort(np.argsort(first))[numbers]  # groups in the order of their first rows
    starts, begin, position = array("q", [0]), 0, 0
    for count in np.bincount(places).tolist():
        end = position + count
        if end - begin > size and position > begin:
            begin = position
            starts.append(begin)
        while end - begin > size:
            begin += size
            starts.append(begin)
        position = end
    if rows:
        starts.append(rows)
    return Windows(starts, np.argsort(places, kind="stable"))
