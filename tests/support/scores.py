"""Figures of a metric over lists of answers, without their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mllm.metrics.bootstrap import RESAMPLES
from mllm.metrics.measures import Measures
from mllm.metrics.scoring import Entry, Series
from mllm.report.figures import INTERVAL
from mllm.structures import Answer


def score(entry: Entry, predictions: Sequence[Answer | str], references: Sequence[Answer | str]) -> dict[str, float]:
    """Return the figures of a metric; a text stands for an answer with this text."""
    series = Series(entry)
    for prediction, reference in zip(predictions, references, strict=True):
        pair = (Answer(answer) if isinstance(answer, str) else answer for answer in (prediction, reference))
        series.add(*pair)
    return points(series.result(resamples=2))


def measure_figures(
    predicted: Mapping[str, np.ndarray],
    true: Mapping[str, np.ndarray],
    groups: Sequence[str | None],
    resamples: int = RESAMPLES,
) -> dict[str, float]:
    """Return the figures of the metric `measures` for predictions and references [N] by measure."""
    series = Series(Measures)
    for i, group in enumerate(groups):
        first, second = ({name: float(values[i]) for name, values in part.items()} for part in (predicted, true))
        series.add(Answer("", measures=first), Answer("", measures=second, group=group))
    return series.result(resamples)


def points(figures: dict[str, float]) -> dict[str, float]:
    """Return the figures without the limits of their intervals."""
    return {name: value for name, value in figures.items() if not name.endswith(INTERVAL)}
