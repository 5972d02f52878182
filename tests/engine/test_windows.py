"""Windows of the rows of a split."""

from __future__ import annotations

import numpy as np

from mllm.engine.windows import windows_of


def windows(*arguments) -> list[list[int]]:
    return [list(window) for window in windows_of(*arguments)]


def test_windows_without_groups_are_consecutive_rows():
    assert windows(7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert windows(0, 3) == windows(0, 3, []) == []


def test_a_group_is_in_one_window_if_it_fits():
    assert windows(8, 4, [0, 1, 0, 2, 1, 0, 2, 3]) == [[0, 2, 5], [1, 4, 3, 6], [7]]
    assert windows(3, 4, [5, 5, 5]) == [[0, 1, 2]]


def test_a_larger_group_begins_a_window_and_is_divided():
    assert windows(7, 2, [0, 1, 1, 1, 1, 1, 2]) == [[0], [1, 2], [3, 4], [5, 6]]


def test_windows_of_random_groups_are_those_of_lists():
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, size = int(rng.integers(1, 40)), int(rng.integers(1, 8))
        groups = rng.integers(0, int(rng.integers(1, 30)), rows)
        divided = windows_of(rows, size, groups)
        assert list(divided) == listed(size, groups.tolist())
        assert divided.starts[-1] == rows
        assert [len(window) for window in divided] == np.diff(divided.starts).tolist()


def listed(size: int, groups: list[int]) -> list[list[int]]:
    """Return the windows of rows, which are collected one by one."""
    parts = [[]]
    for group in dict.fromkeys(groups):
        members = [row for row, own in enumerate(groups) if own == group]
        if len(parts[-1]) + len(members) > size:
            parts.append([])
        for row in members:
            if len(parts[-1]) == size:
                parts.append([])
            parts[-1].append(row)
    return [part for part in parts if part]
