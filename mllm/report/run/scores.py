"""Scores of single answers, by which a report sorts and filters them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm.contents import UNITS, contents_of, stated_measures
from mllm.engine.predictions import answers_of
from mllm.metrics.base import SumMetric
from mllm.metrics.classification import ClassMetric
from mllm.metrics.labels import LabelSetMetric
from mllm.metrics.numbers import NumberMetric
from mllm.metrics.scoring import tasks_of
from mllm.registry import METRICS
from mllm.structures import Answer

Pair = tuple[Answer, Answer]
"""Prediction and reference."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """Score of one answer."""

    quality: float
    """0 (worst) to 1 (best)."""
    is_right: bool
    text: str
    """Value for readers, such as `IoU: 0.53`."""


@dataclass(frozen=True)
class Rule:
    """Value of a `SumMetric` for a single sample, and the smallest value of a right answer."""

    title: str
    figure: str
    threshold: float
    largest: float = 1.0
    """Best value."""


RULES = {
    "rec": Rule("mean IoU of the boxes", "mean_iou", 0.5),
    "res": Rule("IoU of the masks", "gIoU", 0.5),
    "dice": Rule("Dice", "dice", 0.5),
    "iou": Rule("IoU", "iou", 0.5),
    "nsd": Rule("surface Dice", "nsd@2px", 0.5),
    "detection_f1": Rule("F1 of the boxes at IoU 0.5", "f1_greedy@0.5", 1.0),
    "detection_f1_hungarian": Rule("F1 of the boxes at IoU 0.5", "f1_hungarian@0.5", 1.0),
    "instance_f1": Rule("F1 of the instances at IoU 0.5", "f1@0.5", 1.0),
    "exact_match": Rule("exact match", "exact_match", 1.0),
    "token_f1": Rule("F1 of the words", "token_f1", 0.5),
    "rouge_l": Rule("ROUGE-L", "rouge_l", 0.5),
    "bleu": Rule("BLEU-1", "bleu1", 50.0, 100.0),
    "chrf": Rule("chrF", "chrf", 50.0, 100.0),
    "meteor": Rule("METEOR", "meteor", 0.5),
}
"""Metric -> its value for a single sample."""
SUBSTITUTES = {
    "coco_ap": "detection_f1",
    "hd95": "dice",
    "cider": "token_f1",
    **dict.fromkeys(("auroc", "auprc", "sensitivity_at_specificity", "ece", "brier"), "accuracy"),
    **dict.fromkeys(("mae", "rmse", "r2", "limits_of_agreement"), "mae"),
}
"""Metric that has no value for a single sample -> another one of the same answers."""
TOLERANCE = 0.1
"""A number is right if its error is at most this fraction of the range of the references."""


def score_rows(rows: Sequence[Row], metrics: Iterable[str]) -> tuple[list[Score | None], list[str]]:
    """Return the score of each row, and sentences about the meaning of "right".

    A row has the score of the first metric that is for its task. A row that no metric can score has None. Several
    sentences begin with the names of their metrics.

    Args:
        rows: Rows of `predictions.jsonl`.
        metrics: Names of metrics, as `metrics.json` has them (`accuracy`, `mae/counting`).
    """
    scores: list[Score | None] = [None] * len(rows)
    sentences: dict[str, str] = {}
    for name in _scorers(rows, metrics):
        entry = METRICS.find(name)
        tasks = tasks_of(entry)
        open_rows = [
            number
            for number, row in enumerate(rows)
            if scores[number] is None and (not tasks or row.get("task") is None or row["task"] in tasks)
        ]
        if open_rows:
            own, sentence = _score(name, entry, (answers_of(rows[number]) for number in open_rows))
            for number, score in zip(open_rows, own, strict=True):
                scores[number] = score
            if any(own):
                sentences[name] = sentence
    if len(sentences) < 2:
        return scores, list(sentences.values())
    return scores, [f"{name}: {sentence[0].lower()}{sentence[1:]}" for name, sentence in sentences.items()]


def _scorers(rows: Sequence[Row], metrics: Iterable[str]) -> list[str]:
    """Return the names of metrics with a value for a single sample, in order; at the end one for other rows."""
    names = [name.partition("/")[0] for name in metrics]
    names = [SUBSTITUTES.get(name, name) for name in names]
    known = [name for name in names if name in METRICS.names() and _is_scorer(name)]
    contents = contents_of(answers_of(rows[0])[1]) if rows else set()
    rest = next((name for name, part in (("dice", "mask"), ("rec", "box")) if part in contents), "exact_match")
    return list(dict.fromkeys([*known, rest]))


def _is_scorer(name: str) -> bool:
    entry = METRICS.find(name)
    kinds = (ClassMetric, LabelSetMetric, NumberMetric)
    return name in RULES or name == "measures" or (isinstance(entry, type) and issubclass(entry, kinds))


def _score(name: str, entry: Callable[..., Any], pairs: Iterable[Pair]) -> tuple[list[Score | None], str]:
    """Return the scores of answers by a metric, and the sentence about right answers."""
    if name == "measures":
        return _measure_scores(list(pairs))
    metric = entry()
    for prediction, reference in pairs:
        metric.add(prediction, reference)
    if isinstance(metric, ClassMetric):
        right = (metric.predictions() == metric.targets).tolist()
        return [_of_flag(is_right) for is_right in right], "An answer is right if its class is that of the reference."
    if isinstance(metric, LabelSetMetric):
        values = metric.table().own
        sentence = "An answer is right if its labels are those of the reference."
        return [_of_value(value, Rule("F1 of the labels", "", 1.0)) for value in values.tolist()], sentence
    if isinstance(metric, NumberMetric):
        return _number_scores(metric)
    assert isinstance(metric, SumMetric)
    rule = RULES[name]
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = metric.of_sums(dict(zip(metric.columns, metric.table().T, strict=True)))
    limit = f"is {rule.threshold:g}" if rule.threshold == rule.largest else f"is at least {rule.threshold:g}"
    sentence = f"An answer is right if its {rule.title} {limit}."
    return [_of_value(value, rule) for value in figures[rule.figure].tolist()], sentence


def _of_flag(is_right: bool) -> Score:
    return Score(float(is_right), is_right, "right" if is_right else "wrong")


def _of_value(value: float, rule: Rule) -> Score | None:
    """Return the score of a value; None if it is not defined, as for a reference without a box."""
    if not np.isfinite(value):
        return None
    quality = min(max(value / rule.largest, 0.0), 1.0)
    return Score(quality, value >= rule.threshold - 1e-9, f"{rule.title}: {value:.2f}")


def _number_scores(metric: NumberMetric) -> tuple[list[Score | None], str]:
    answers, references, failed = metric.numbers()
    scores: list[Score | None] = []
    reach = _reach(references)
    for answer, reference, is_failed in zip(answers.tolist(), references.tolist(), failed.tolist(), strict=True):
        scores.append(_of_error(answer - reference, reach, is_failed, "error"))
    return scores, f"A number is right if its error is at most {TOLERANCE * reach:.4g}, 10 % of the range."


def _measure_scores(pairs: Sequence[Pair]) -> tuple[list[Score | None], str]:
    """Return the scores of the measure of each row that has the largest error relative to the range."""
    predicted, true = (
        [answer.measures or stated_measures(answer.text) for answer in side] for side in zip(*pairs, strict=True)
    )
    names = dict.fromkeys(name for row in true for name in row)
    reaches = {name: _reach(np.array([row.get(name, np.nan) for row in true])) for name in names}
    scores: list[Score | None] = []
    for answer, reference in zip(predicted, true, strict=True):
        errors = [
            _of_error(answer.get(name, np.nan) - value, reaches[name], name not in answer, f"error of {name}", name)
            for name, value in reference.items()
            if np.isfinite(value)
        ]
        known = [error for error in errors if error is not None]
        scores.append(min(known, key=lambda score: score.quality) if known else None)
    limits = ", ".join(f"{TOLERANCE * reach:.4g} {UNITS.get(name, '')}".strip() for name, reach in reaches.items())
    return scores, f"Measures are right if their errors are at most 10 % of the range ({', '.join(names)}: {limits})."


def _of_error(error: float, reach: float, is_failed: bool, title: str, measure: str = "") -> Score | None:
    """Return the score of an error; None for an unknown reference."""
    if is_failed:
        return Score(0.0, False, "unreadable answer")
    if not np.isfinite(error):
        return None
    quality = 1 - min(abs(error) / reach, 1.0)
    text = f"{title} {error:+.4g} {UNITS.get(measure, '')}".strip()
    return Score(quality, abs(error) <= TOLERANCE * reach + 1e-12, text)


def _reach(references: np.ndarray) -> float:
    """Return the range of known references and 0; 1 if all are 0."""
    known = references[np.isfinite(references)]
    return float(np.ptp(np.append(known, 0.0))) or 1.0
