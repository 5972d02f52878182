"""Scores of single answers, by which a report sorts and filters them."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import Any

import numpy as np

from mllm.contents import UNITS, contents_of
from mllm.engine.predictions import answers_of
from mllm.metrics.base import PartedMetric, StreamingMetric, SumMetric
from mllm.metrics.classification import ClassMetric
from mllm.metrics.labels import LabelSetMetric, own_f1
from mllm.metrics.measures import Measures
from mllm.metrics.numbers import NumberMetric
from mllm.metrics.scoring import Series, tasks_of
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
    figures: tuple[str, ...]
    """Names of the value; a sample has one of them."""
    threshold: float
    largest: float = 1.0
    """Best value."""


RULES = {
    "rec": Rule("mean IoU of the boxes", ("mean_iou",), 0.5),
    "res": Rule("IoU of the masks", ("gIoU",), 0.5),
    "dice": Rule("Dice", ("dice",), 0.5),
    "iou": Rule("IoU", ("iou",), 0.5),
    "nsd": Rule("surface Dice", ("nsd@2mm", "nsd@2px"), 0.5),
    "detection_f1": Rule("F1 of the boxes at IoU 0.5", ("f1_greedy@0.5",), 1.0),
    "detection_f1_hungarian": Rule("F1 of the boxes at IoU 0.5", ("f1_hungarian@0.5",), 1.0),
    "instance_f1": Rule("F1 of the instances at IoU 0.5", ("f1@0.5",), 1.0),
    "exact_match": Rule("exact match", ("exact_match",), 1.0),
    "token_f1": Rule("F1 of the words", ("token_f1",), 0.5),
    "rouge_l": Rule("ROUGE-L", ("rouge_l",), 0.5),
    "bleu": Rule("BLEU-1", ("bleu1",), 50.0, 100.0),
    "chrf": Rule("chrF", ("chrf",), 50.0, 100.0),
    "meteor": Rule("METEOR", ("meteor",), 0.5),
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
BATCH = 1000
"""Number of answers whose scores are computed together."""


@dataclass(frozen=True)
class Scored:
    """Scores of the rows of an evaluation."""

    worst: list[tuple[int, Score | None]]
    """Index and score of the worst rows, the worst first. Rows without a score are last."""
    right: int
    wrong: int
    """Numbers of right and of wrong answers."""
    rules: list[str]
    """Sentences about the meaning of "right". Several ones begin with the names of their metrics."""


def score_rows(rows: Sequence[Row], metrics: Iterable[str], limit: int) -> Scored:
    """Score the answers of an evaluation.

    A row has the score of the first metric that is for its task. A row that no metric can score has none.

    Args:
        rows: Rows of `predictions.jsonl`, which are read again for each metric.
        metrics: Names of metrics, as `metrics.json` has them (`accuracy`, `mae/counting`).
        limit: Maximum number of the worst rows.
    """
    verdicts = bytearray(len(rows))  # index in `counts`
    counts = [len(rows), 0, 0]  # without a score, right, wrong
    worst: list[tuple[float, int, Score]] = []
    sentences: dict[str, str] = {}
    for name in _scorers(rows, metrics):
        if not counts[0]:
            break
        scorer = _Scorer(name, rows, verdicts)

        def ranked(scorer: _Scorer = scorer) -> Iterator[tuple[float, int, Score]]:
            for number, score in scorer.scores():
                if score is not None:
                    verdicts[number] = 1 if score.is_right else 2
                    counts[verdicts[number]] += 1
                    counts[0] -= 1
                    yield score.quality, number, score

        before = counts[0]
        worst = heapq.nsmallest(limit, chain(worst, ranked()), key=itemgetter(0, 1))
        if counts[0] < before:
            sentences[name] = scorer.sentence
    rules = list(sentences.values())
    if len(rules) > 1:
        rules = [f"{name}: {sentence[0].lower()}{sentence[1:]}" for name, sentence in sentences.items()]
    unscored = ((number, None) for number, verdict in enumerate(verdicts) if not verdict)
    chosen = [(number, score) for _, number, score in worst]
    return Scored([*chosen, *islice(unscored, limit - len(chosen))], counts[1], counts[2], rules)


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


class _Scorer:
    """Scores of the rows of the tasks of a metric that have no score yet.

    Args:
        name: Name of the metric.
        rows: Rows of `predictions.jsonl`.
        verdicts: One byte for each row; not 0: it has a score.
    """

    def __init__(self, name: str, rows: Sequence[Row], verdicts: bytearray) -> None:
        self.name, self.entry, self._rows, self._verdicts = name, METRICS.find(name), rows, verdicts
        self.sentence = ""
        """Sentence about right answers."""

    def scores(self) -> Iterator[tuple[int, Score | None]]:
        """Yield the index of each row and its score; None: the metric has none for it."""
        if issubclass(self.entry, SumMetric):
            yield from self._of_sums()
            return
        numbers, series = array("q"), Series(self.entry)
        for number, pair in self._pairs():
            numbers.append(number)
            series.add(*pair)
        yield from zip(numbers, self._of_metric(series.metric), strict=True)

    def _pairs(self) -> Iterator[tuple[int, Pair]]:
        tasks = tasks_of(self.entry)
        for number, row in enumerate(self._rows):
            if not self._verdicts[number] and (not tasks or row.get("task") is None or row["task"] in tasks):
                yield number, answers_of(row)

    def _of_sums(self) -> Iterator[tuple[int, Score | None]]:
        """Yield the scores of a metric whose values for an answer depend on no other answer."""
        rule, metric = RULES[self.name], self.entry()
        limit = f"is {rule.threshold:g}" if rule.threshold == rule.largest else f"is at least {rule.threshold:g}"
        self.sentence = f"An answer is right if its {rule.title} {limit}."
        pairs = self._pairs()
        while part := list(islice(pairs, BATCH)):
            for _, pair in part:
                metric.add(*pair)
            with np.errstate(divide="ignore", invalid="ignore"):
                figures = metric.of_sums(dict(zip(metric.columns, metric.table().T, strict=True)))
            metric.forget()
            known = [figures[name] for name in rule.figures if name in figures]
            values = np.where(np.isfinite(known[0]), known[0], known[-1])
            yield from ((number, _of_value(value, rule)) for (number, _), value in zip(part, values, strict=True))

    def _of_metric(self, metric: StreamingMetric) -> Iterator[Score | None]:
        """Yield the scores of a metric that reads an answer by what the references of all answers are."""
        assert isinstance(metric, PartedMetric)
        parts = (part for _, part in metric.parts())
        if isinstance(metric, ClassMetric):
            self.sentence = "An answer is right if its class is that of the reference."
            for answers in map(metric.read, parts):
                yield from map(_of_flag, (answers.predictions == answers.targets).tolist())
        elif isinstance(metric, LabelSetMetric):
            self.sentence = "An answer is right if its labels are those of the reference."
            rule = Rule("F1 of the labels", (), 1.0)
            for pairs in map(metric.read, parts):
                yield from (_of_value(value, rule) for value in own_f1(pairs).tolist())
        elif isinstance(metric, NumberMetric):
            reach = _reach(metric.references()[:2])
            self.sentence = f"A number is right if its error is at most {TOLERANCE * reach:.4g}, 10 % of the range."
            for part in map(metric.read, parts):
                for answer, reference, failed in zip(*(column.tolist() for column in part), strict=True):
                    yield _of_error(answer - reference, reach, failed, "error")
        else:
            assert isinstance(metric, Measures)
            reaches = {name: _reach(ends) for name, ends in metric.ranges().items()}
            limits = [f"{TOLERANCE * reach:.4g} {UNITS.get(name, '')}".strip() for name, reach in reaches.items()]
            ends = f"{', '.join(reaches)}: {', '.join(limits)}"
            self.sentence = f"Measures are right if their errors are at most 10 % of the range ({ends})."
            yield from (_of_measures(pair[0], pair[1], reaches) for part in parts for pair in part)


def _of_flag(is_right: bool) -> Score:
    return Score(float(is_right), is_right, "right" if is_right else "wrong")


def _of_value(value: float, rule: Rule) -> Score | None:
    """Return the score of a value; None if it is not defined, as for a reference without a box."""
    if not np.isfinite(value):
        return None
    quality = min(max(value / rule.largest, 0.0), 1.0)
    return Score(quality, value >= rule.threshold - 1e-9, f"{rule.title}: {value:.2f}")


def _of_measures(
    predicted: Mapping[str, float], true: Mapping[str, float], reaches: Mapping[str, float]
) -> Score | None:
    """Return the score of the measure of a row that has the largest error relative to the range."""
    errors = [
        _of_error(predicted.get(name, np.nan) - value, reaches[name], name not in predicted, f"error of {name}", name)
        for name, value in true.items()
        if np.isfinite(value)
    ]
    known = [error for error in errors if error is not None]
    return min(known, key=lambda score: score.quality) if known else None


def _of_error(error: float, reach: float, is_failed: bool, title: str, measure: str = "") -> Score | None:
    """Return the score of an error; None for an unknown reference."""
    if is_failed:
        return Score(0.0, False, "unreadable answer")
    if not np.isfinite(error):
        return None
    quality = 1 - min(abs(error) / reach, 1.0)
    text = f"{title} {error:+.4g} {UNITS.get(measure, '')}".strip()
    return Score(quality, abs(error) <= TOLERANCE * reach + 1e-12, text)


def _reach(ends: Sequence[float]) -> float:
    """Return the length of a range of references and 0; 1 if all are 0."""
    return float(ends[1] - ends[0]) or 1.0
