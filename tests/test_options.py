from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers.trainer_utils import IntervalStrategy

from mllm.options import broken_bound, fits, format_type, invalid_value


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        ("1", float, False),
        (None, int | None, True),
        ("a", int | None, False),
        ({"a": 1}, dict[str, Any] | None, True),
        (["a"], list[str] | str, True),
        (3, list[str] | str, False),
        (("a",), Sequence[str], True),
        ("a", Sequence[str] | None, False),
        ({"a": 1}, Mapping[str, int], True),
        (["a"], Mapping[str, int], False),
        ("a", str | Path, True),
        (3, str | Path, False),
        ("epoch", IntervalStrategy | str, True),
        ("epochs", IntervalStrategy | str, False),
        ("skip", Literal["raise", "skip"], True),
        ("no", Literal["raise", "skip"], False),
        (object(), Any, True),
    ],
)
def test_values_that_fit_a_type(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_words():
    assert format_type(int | None) == "an integer or None"
    assert format_type(None | bool) == "True or False or None"
    assert format_type(IntervalStrategy | str) == "one of no, steps, epoch"
    assert invalid_value("epochs", IntervalStrategy | str) == "does not know 'epochs': did you mean 'epoch'?"
    assert invalid_value(3, IntervalStrategy | str) == "must be one of no, steps, epoch, not 3"


def test_limits():
    assert broken_bound(0, {"minimum": 1}) == "at least 1"
    assert broken_bound(float("nan"), {"minimum": 0}) == "at least 0"
    assert broken_bound(0.5, {"minimum": 0, "below": 1}) is None
    assert broken_bound(None, {"minimum": 1}) is None
