"""Tests of gray values and the selection of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mllm.dataset.readers.gray import choose, full_range, scaled, to_image
from mllm.errors import ConfigError, DataError


def test_scaled_by_hand():
    values = np.array([-200, -160, 40, 239, 240, 999], np.int16)
    assert scaled(values, -160, 240).tolist() == [0, 0, 0.5, 399 / 400, 1, 1]
    assert scaled(values, 5, 5).tolist() == [0] * 6


def test_full_range_ignores_non_finite_values():
    assert full_range(np.array([np.nan, 2, np.inf, -3, -np.inf])) == (-3, 2)
    assert full_range(np.array([np.nan])) == (0, 0)


def test_to_image_rounds_and_shows_nan_black():
    picture = to_image(np.array([[0, 0.5, 1, np.nan, 0.0019, 0.0020]]))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 128, 255, 0, 0, 1]
    assert picture.mode == "RGB"


def test_choose():
    def chosen(choice, count=5):
        return choose(choice, count, Path("a.dcm"), "frames", "frame")

    assert chosen("first") == [0]
    assert chosen("middle") == [2]
    assert chosen("last") == [4]
    assert chosen("all") == [0, 1, 2, 3, 4]
    assert chosen(3) == [3]
    assert chosen([4, 0, 4]) == [4, 0, 4]
    assert chosen(np.array([1, 2])) == [1, 2]
    assert chosen(np.int64(1)) == [1]
    for bad in (5, -1, [0, 5]):
        with pytest.raises(DataError, match=r"a.dcm has no frame (5|-1): it has 5, from 0 to 4"):
            chosen(bad)
    for bad in (True, 1.0, [], None, ["a"], "frist"):
        with pytest.raises(ConfigError, match="frames="):
            chosen(bad)
