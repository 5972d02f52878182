from __future__ import annotations

import math

import pytest

from mllm.config.source import has_source, source_of

VALUES = [
    None,
    True,
    -3,
    1e-300,
    'a "b" \\n\n',
    (),
    (1,),
    [],
    {},
    {"a": {"b": [1, (2, 3)], "not a name": 1}, "class": None},
    {1: 2},
    ["x" * 60, "y" * 60, {"k": ["z" * 120]}],
    {"a": (float("inf"), -float("inf"))},
]


@pytest.mark.parametrize("value", VALUES)
def test_source_evaluates_to_the_value(value):
    assert eval(source_of(value)) == value
    assert has_source(value)


def test_nan_stays_nan():
    assert math.isnan(eval(source_of({"a": float("nan")}))["a"])


def test_lines_are_wrapped_if_possible():
    text = source_of({"a": ["abc"] * 60})
    assert max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize("value", [print, {1, 2}, {"a": object}, {(1, 2): 3}])
def test_values_without_source_are_refused(value):
    assert not has_source(value)
