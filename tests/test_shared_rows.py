"""Tests of the division of samples into rows, and of the tokens that they share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mllm.shared_rows import leaders_of, rows_of
from mllm.structures import Encoded

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=20)


def encoded(ids: list[int], key: str | None = "a", image_end: int = 2) -> Encoded:
    labels = torch.zeros(len(ids), dtype=torch.long)
    return Encoded({"input_ids": torch.tensor(ids)}, {"labels": labels}, image_key=key, image_end=image_end)


def texts(lengths: list[int]) -> list[Encoded]:
    """Return samples that share nothing."""
    return [encoded([0] * length, key=None) for length in lengths]


def test_the_leader_is_the_sample_with_most_first_tokens_in_common() -> None:
    samples = [encoded([1, 2, 3, 4]), encoded([1, 2, 5, 6, 7]), encoded([1, 2, 5, 6, 8]), encoded([1, 2, 5, 6, 8])]
    others = [encoded([1, 2, 3, 4], key="b"), encoded([1, 2, 3, 4], key=None), encoded([1, 9, 3, 4])]
    assert leaders_of([*samples, *others]) == ([0, 0, 1, 1, 4, 5, 6], [0, 2, 4, 4, 0, 0, 0])


@pytest.mark.parametrize(
    "other",
    [encoded([9, 2, 3]), encoded([1, 2, 3], key=None), encoded([1, 2, 3], key="b"), encoded([1, 2, 3], image_end=3)],
    ids=["text before the image", "not shared", "another image", "image after another text"],
)
def test_other_samples_share_nothing(other: Encoded) -> None:
    samples = [replace(encoded([1, 2, 4]), image_end=other.image_end), other]
    assert leaders_of(samples) == ([0, 1], [0, 0])
    assert rows_of(samples, room=5) == [[0], [1]]


def test_equal_samples_keep_their_last_token() -> None:
    assert leaders_of([encoded([1, 2, 3]), encoded([1, 2, 3])]) == ([0, 0], [0, 2])


@pytest.mark.parametrize(
    "kind", [dict(has_features=True), dict(images_per_row=2)], ids=["stored features", "number of images"]
)
def test_samples_of_unlike_kinds_are_in_rows_of_their_own_and_share_nothing(kind: dict[str, int]) -> None:
    first, second = encoded([1, 2, 3]), encoded([1, 2, 4])
    samples = [first, replace(first, **kind), second, replace(second, **kind)]
    assert rows_of(samples, room=100) == [[0, 2], [1, 3]]
    assert rows_of(samples, room=100, in_order=True) == [[0], [1], [2], [3]]
    assert leaders_of(samples) == ([0, 1, 0, 1], [0, 0, 2, 2])


def test_rows_have_room_for_their_tokens_and_keep_images_together() -> None:
    samples = [encoded([1, 2, number, number], key) for number, key in enumerate("aabaabbc", start=3)]
    a, b, c = [0, 1, 3, 4], [2, 5, 6], [7]  # 10, 8 and 4 tokens
    assert rows_of(samples, room=100) == [[*a, *b, *c]]
    assert rows_of(samples, room=14) == [[*a, *c], b]
    assert rows_of(samples, room=12) == [a, [*b, *c]]
    assert rows_of(samples, room=8) == [[0, 1, 3], b, [4, 7]]
    assert rows_of(samples, room=100, max_samples=3) == [[0, 1, 3], b, [4, 7]]
    assert rows_of(samples, room=1) == [[0], [1], [3], [4], [2], [5], [6], [7]]
    assert rows_of([], room=1) == []


@given(LENGTHS, st.integers(1, 100))
def test_no_two_rows_fit_into_one(lengths: list[int], room: int) -> None:
    rows = rows_of(texts(lengths), room)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= room for row in rows)
    used = [sum(lengths[i] for i in row) for row in rows]
    fits = [length for length in used if length <= room]
    assert sum(sorted(fits)[:2]) > room or len(fits) < 2, "the two emptiest rows would fit into one"


@given(LENGTHS, st.integers(1, 100), st.integers(1, 5))
def test_rows_in_order_have_all_samples_in_their_order(lengths: list[int], room: int, most: int) -> None:
    rows = rows_of(texts(lengths), room, most, in_order=True)
    assert [i for row in rows for i in row] == list(range(len(lengths)))
    assert all(len(row) <= most for row in rows)
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= room for row in rows)
