"""Tests of `mllm.engine.privacy.ledger`: order, merging and saving."""

from __future__ import annotations

import json

import pytest

from mllm.engine.privacy.ledger import Ledger


def test_only_equal_adjacent_entries_are_combined() -> None:
    ledger = Ledger()
    for sigma, rate in [(1.0, 0.1)] * 3 + [(1.0, 0.2)] + [(1.0, 0.1)] * 2 + [(0.5, 0.1)]:
        ledger.add(sigma, rate)
    assert ledger.entries == ((1.0, 0.1, 3), (1.0, 0.2, 1), (1.0, 0.1, 2), (0.5, 0.1, 1))
    assert ledger.steps == 7
    ledger.add(0.5, 0.1, steps=0)
    ledger.add(0.5, 0.1, steps=4)
    assert ledger.entries[-1] == (0.5, 0.1, 5)


def test_json_keeps_every_digit() -> None:
    ledger = Ledger([(0.1 + 0.2, 1 / 3, 7), (1.5, 8 / 900, 1)])
    again = Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    assert again == ledger and again.entries == ledger.entries
    again.add(1.5, 8 / 900)
    assert again != ledger and again.entries[-1] == (1.5, 8 / 900, 2)
    assert Ledger.from_dict(Ledger().to_dict()).entries == ()


@pytest.mark.parametrize("wrong", [(1.0, 0.0, 1), (1.0, 1.1, 1), (-1.0, 0.5, 1), (1.0, 0.5, -1)])
def test_zero_steps_are_not_recorded(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(AssertionError):
        Ledger().add(*wrong)
