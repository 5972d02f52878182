"""Answers of FLARE 2025, task 5, in the form that the scorers of the published baselines read."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from mllm.parsing import (
    STATED,
    number_and_unit,
    options_in,
    parse_boxes,
    parse_instances,
    parse_option,
    split_parts,
)
from mllm.structures import Answer


def challenge_answer(answer: Answer, task: str, question: str) -> str:
    """Return the text of an answer in `predictions.json`. An answer that cannot be parsed is written as it is.

    Scorers split labels at `;` or `,`, and read coordinates of boxes as digits without a sign or a decimal point.

    Args:
        answer: The predicted answer.
        task: Name of the task, as in `INSTRUCTIONS`.
        question: The question of the row.

    Returns:
        classification: the letter of the option. multi_label_classification: labels with the separator of the answer.
        detection: `[x1, y1, x2, y2]` in whole pixels, several boxes with `; `. instance_detection: JSON in whole
        pixels. counting: a whole number. regression: a number, with its unit if it has one. report_generation: the
        text.
    """
    text = answer.text.strip()
    parsed: str | None = None
    if task == "classification":
        parsed = parse_option(text, options_in(question))
    elif task == "multi_label_classification":
        parsed = _labels(text)
    elif task == "detection":
        boxes = [mark.box for mark in answer.marks if mark.box is not None] or parse_boxes(text)
        parsed = "; ".join(str(_pixels(box)) for box in boxes) if boxes else None
    elif task == "instance_detection":
        instances = parse_instances(text)
        if instances is not None:
            parsed = json.dumps({name: [_pixels(box) for box in boxes] for name, boxes in instances.items()})
    elif task in ("counting", "regression"):
        parsed = _number(text, whole=task == "counting")
    return text if parsed is None else parsed


def _labels(text: str) -> str | None:
    """Return the labels of an answer, without blanks around them; None if several results are stated."""
    stated = STATED.findall(text)
    if len(stated) > 1:
        return None
    labels = stated[0].rstrip(". ") if stated else text
    separator = next((mark for mark in ";|," if mark in labels), ";")
    return (";" if separator == "|" else separator).join(part.strip() for part in split_parts(labels) if part.strip())


def _pixels(box: Sequence[float]) -> list[int]:
    """Return x1 y1 x2 y2 in whole pixels, from 0."""
    return [max(0, round(value)) for value in box]


def _number(text: str, whole: bool) -> str | None:
    """Return the number that a text states, without an exponent; None for another text."""
    parsed = number_and_unit(text)
    if parsed is None:
        return None
    value, unit = parsed
    number = str(round(value)) if whole else np.format_float_positional(value, trim="-")
    return number if whole or not unit else f"{number} {unit}"
