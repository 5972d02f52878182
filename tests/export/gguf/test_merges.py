"""Tests of scores for merges: only if both produce equal tokens."""

from __future__ import annotations

import numpy as np

from mllm.export.gguf.merges import merge_scores

PIECES = {piece: index for index, piece in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
MERGES = [("b", "c"), ("a", "b"), ("ab", "c")]


def scores(merges: list[tuple[str, str]], specials: list[str]) -> dict[str, float] | None:
    return merge_scores(PIECES, np.array([[PIECES[left], PIECES[right]] for left, right in merges]), specials)


def test_the_first_merge_has_the_highest_score() -> None:
    assert scores([*MERGES, ("a", "bc")], []) == {"bc": -0.0, "ab": -1.0, "abc": -2.0}


def test_merges_with_a_gap_have_no_scores() -> None:
    assert scores(MERGES, []) is None  # by score, `a` and `bc` would be joined
    assert scores(MERGES, ["abc"]) is not None


def test_merges_of_one_piece_are_adjacent() -> None:
    assert scores([("ab", "c"), ("a", "b"), ("b", "c"), ("a", "bc")], []) is None  # `abc` twice
