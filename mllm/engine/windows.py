"""Windows of the rows of a split, which are answered together."""

from __future__ import annotations

from collections.abc import Sequence


def windows_of(rows: int, size: int, groups: Sequence[int] | None = None) -> list[Sequence[int]]:
    """Divide the indices of the rows of a split into windows.

    Args:
        rows: Number of rows.
        size: Maximum number of rows of a window.
        groups: Number of the group of each row. Rows of a group follow each other, and are in one window if it has room
            for them. None: windows are consecutive rows.
    """
    if groups is None:
        return [range(start, min(start + size, rows)) for start in range(0, rows, size)]
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(int(group), []).append(index)
    windows = [list[int]()]
    for group_rows in members.values():
        if len(windows[-1]) + len(group_rows) > size:
            windows.append([])
        for index in group_rows:
            if len(windows[-1]) == size:
                windows.append([])
            windows[-1].append(index)
    return [window for window in windows if window]
