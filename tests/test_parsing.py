"""Parsers of answers: exact forms are read, everything else is a failure, and nothing raises."""

from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.parsing import (
    LETTERS,
    number_and_unit,
    options_in,
    parse_boxes,
    parse_instances,
    parse_json,
    parse_labels,
    parse_number,
    parse_option,
)

OPTIONS = {"A": "normal", "B": "edema, mild", "C": "nodule"}
EXAMPLES = int(os.environ.get("MLLM_EXAMPLES", "50"))
"""Number of generated answers per test; `MLLM_EXAMPLES=10000` for a thorough run."""
QUICK = settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
PIECES = st.sampled_from(
    [*"ABCT()[]{};:,.-%<>\n\"' ", "12", "3.5", "1,234", "e9", "mm", "NaN", "Infinity", "none", "nodule", "```json\n"]
    + [
        "The answer is ",
        "Answer: ",
        "edema",
        "[1,2,3,4]",
        '{"1":',
        "null",
        "true",
        "9" * 5000,
        "[" * 3000,
        "４",
        "\u2212",
    ]
)
ANSWERS = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map("".join))


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which? Options: A: normal B: edema, mild C: nodule", OPTIONS),
        ("Which?\nA. normal\nB. edema, mild\nC. nodule\nAnswer with its letter.", OPTIONS),
        ("Which? (A) normal, (B) edema, mild, (C) nodule", OPTIONS),
        ("What does A: mean?", {}),
        ("Which lobe?", {}),
        ("Options: " + " ".join(f"{letter}: grade {letter}" for letter in LETTERS), {x: f"grade {x}" for x in LETTERS}),
    ],
)
def test_options_of_a_question(question: str, options: dict[str, str]) -> None:
    assert options_in(question) == options


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[(text, "B") for text in ("B", "(B)", "b.", "B: edema, mild", "Edema, mild", "The answer is B.", "B\nIt is.")],
        *[("B, because A is wrong", "B"), ("nodule", "C"), ("Answer: C. nodule", "C")],
        *[(text, None) for text in ("", "Hepatitis B", "A, B", "B: nodule", "A patient has", "D", "AB", "no nodule")],
        *[("The answer is A.\nThe answer is B.", None), ("I think B", None)],
    ],
)
def test_options_by_letter_or_text(text: str, letter: str | None) -> None:
    assert parse_option(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("12", (12.0, "")), ("12.", (12.0, "")), ("-3.5 mm", (-3.5, "mm")), ("58.4%", (58.4, "%"))],
        *[("1,234", (1234.0, "")), ("The answer is 7.", (7.0, "")), ("\u22124 °", (-4.0, "°")), ("2e3", (2000.0, ""))],
        *[(text, None) for text in ("", "12 13", "3,5", "< 40", "50-60", "12 to 14", "about 12", "1e999", "nan", "x1")],
        *[(text, None) for text in ("Answer: 1\nAnswer: 2", "1.2.3", "12 cells of 40", "+-1", "0x10", "1_000")],
    ],
)
def test_numbers_with_units(text: str, value: tuple[float, str] | None) -> None:
    assert number_and_unit(text) == value


def test_units_and_bounds_of_a_number() -> None:
    assert parse_number("12", "mm") == parse_number("12 mm", "mm") == 12
    assert parse_number("12 cm", "mm") is parse_number("12 mm") is parse_number("120", maximum=100) is None
    assert parse_number("3 \u00b5m", "\u03bcm") == 3, "micro sign and mu"
    assert parse_number("3 Mm", "mm") is None


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("[1, 2, 3, 4]", [(1, 2, 3, 4)]),
        ("[[1,2,3,4],[5,6,7,8.5]]", [(1, 2, 3, 4), (5, 6, 7, 8.5)]),
        ("[1,2,3,4]; [5,6,7,8].", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("None.", []),
        ("```json\n[[1,2,3,4]]\n```", [(1, 2, 3, 4)]),
        *[
            (text, None)
            for text in ("", "[1,2,3]", "[3,2,1,4]", "[1,2,1,4]", "box [1,2,3,4]", "[1,2,3,true]", "1,2,3,4")
        ],
        *[
            (text, None)
            for text in ("[" * 100_000, "[1,2,3,1e400]", f"[1,2,3,{'9' * 5000}]", "[1,2,3,NaN]", "[[1,2,3,4],5]")
        ],
    ],
)
def test_boxes(text: str, boxes: list[tuple[float, ...]] | None) -> None:
    assert parse_boxes(text) == boxes


def test_instances_and_json() -> None:
    assert parse_instances('{"1": [[1,2,3,4]], "X": []}') == {"1": [(1, 2, 3, 4)], "X": []}
    assert parse_instances('{"1": [[1,2,3,4]], "1": []}') is None, "an identity occurs twice"
    assert parse_instances('{"1": [[1,2,3]]}') is parse_instances("[1]") is parse_instances('x {"1": []}') is None
    assert parse_json("NaN") is parse_json('{"a": Infinity}') is parse_json("{'a': 1}") is None


def test_labels() -> None:
    known = {"edema", "mass", "a, b"}
    assert parse_labels("Edema; MASS.", known) == parse_labels("edema, mass", known) == {"edema", "mass"}
    assert parse_labels("a, b", known) == {"a, b"}
    assert parse_labels("none", known) == parse_labels("No finding.", known) == frozenset()
    assert parse_labels("edema and mass", known) is parse_labels("", known) is parse_labels("edema; x", known) is None


@QUICK
@given(ANSWERS)
def test_generated_answers_never_raise_and_results_are_valid(text: str) -> None:
    assert parse_option(text, OPTIONS) in {None, *OPTIONS}
    labels = parse_labels(text, {"edema", "nodule"})
    assert labels is None or labels <= {"edema", "nodule"}
    number = parse_number(text, "mm", minimum=-1e6, maximum=1e6)
    assert number is None or abs(number) <= 1e6
    for box in parse_boxes(text) or []:
        assert all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]
    for boxes in (parse_instances(text) or {}).values():
        assert all(len(box) == 4 for box in boxes)
    options_in(text)


SENTENCE = ["it", "shows", "a", "patient", "with", "edema", "or", "nodule", "B", "12", "mm", "of", "seven", "cells"]
WORDS = st.lists(st.sampled_from(SENTENCE), min_size=2)


@QUICK
@given(WORDS.map(" ".join).filter(lambda text: len(set(text.split())) > 2))
def test_sentences_are_no_answers(text: str) -> None:
    assert parse_option(text, OPTIONS) is None and number_and_unit(text) is None
    assert parse_labels(text, {"edema", "nodule"}) is None and parse_boxes(text) is None


@QUICK
@given(
    st.lists(st.tuples(*[st.integers(0, 500)] * 2, *[st.integers(501, 999)] * 2), max_size=4),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.sets(st.sampled_from(sorted(OPTIONS))),
)
def test_written_answers_are_read_back(boxes: list[tuple[int, ...]], value: float, letters: set[str]) -> None:
    assert parse_boxes(json.dumps(boxes)) == boxes
    assert parse_number(repr(value)) == value
    names = {OPTIONS[letter] for letter in letters}
    assert parse_labels("; ".join(sorted(names)) or "none", set(OPTIONS.values())) == names
