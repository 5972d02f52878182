"""Windows of the rows of a split."""

from __future__ import annotations

from mllm.engine.windows import windows_of


def windows(*arguments) -> list[list[int]]:
    return [list(window) for window in windows_of(*arguments)]


def test_windows_without_groups_are_consecutive_rows():
    assert windows(7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert windows(0, 3) == []


def test_a_group_is_in_one_window_if_it_fits():
    assert windows(8, 4, [0, 1, 0, 2, 1, 0, 2, 3]) == [[0, 2, 5], [1, 4, 3, 6], [7]]
    assert windows(3, 4, [5, 5, 5]) == [[0, 1, 2]]


def test_a_larger_group_begins_a_window_and_is_divided():
    assert windows(7, 2, [0, 1, 1, 1, 1, 1, 2]) == [[0], [1, 2], [3, 4], [5, 6]]
