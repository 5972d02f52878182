"""Tests of indices of rows."""

import pytest

from mllm.dataset.indices import choose_rows, from_zero
from mllm.errors import ConfigError


def test_negative_indices_count_from_the_end():
    assert [from_zero(index, 3) for index in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 3 rows"):
            from_zero(index, 3)


def test_rows_are_drawn_without_replacement_in_order():
    assert choose_rows(5, None, 0) == choose_rows(5, 9, 0) == [0, 1, 2, 3, 4]
    rows = choose_rows(100, 10, 3)
    assert rows == sorted(set(rows)) == choose_rows(100, 10, 3) != choose_rows(100, 10, 4)
    with pytest.raises(ConfigError, match="size must be at least 1, not 0"):
        choose_rows(5, 0, 0)
