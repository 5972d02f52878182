"""Tests of indices of rows."""

import numpy as np
import pytest

from mllm.dataset.indices import RowGenerators, choose_rows, from_zero
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


@pytest.mark.parametrize("seed, epoch", [(0, 0), (5, 3), (2**31 - 1, 7), (2**40, 1)])
def test_generators_of_consecutive_rows_draw_what_those_of_numpy_draw(seed, epoch):
    generators = RowGenerators()
    for index in (0, 1, 2, 1022, 1023, 1024, 1025, 7, 8, 2**31 - 2, 2**31 - 1, 2**31, 9):
        row, expected = generators.of(seed, epoch, index), np.random.default_rng((seed, epoch, index, 1))
        assert row.integers(10) == expected.integers(10)
        assert row.random() == expected.random()
        assert row.permutation(5).tolist() == expected.permutation(5).tolist()
