"""Computation of metrics over a stream of answers, with bootstrap intervals by group."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mllm.contents import contents_of
from mllm.metrics.base import Metric, PartedMetric, StreamingMetric, part_read
from mllm.metrics.bootstrap import RESAMPLES, interval, resampled_weights
from mllm.metrics.parts import FEW, UNITS, unit_of
from mllm.structures import Answer

Figures = dict[str, float]
Entry = Callable[..., Any]
"""Entry of METRICS: a function of predictions and references, or a class of `StreamingMetric`."""


class AnswersOf(StreamingMetric):
    """Answers for a metric that is a function of all predictions and references, which it needs in memory."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.predictions: list[Answer] = []
        self.references: list[Answer] = []

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Keep the answer to one sample."""
        self.predictions.append(prediction)
        self.references.append(reference)

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return no figure, because a function does not take weights."""
        return {}

    def counts(self) -> dict[str, float]:
        """Return the figures of the function."""
        return self.metric(self.predictions, self.references)


class Series:
    """Answers to the samples of one task, as a metric keeps them.

    From `FEW` answers on, a `PartedMetric` has the sums of random groups of patients instead of the answers.
    """

    def __init__(self, entry: Entry) -> None:
        self._metric: StreamingMetric = entry() if is_streaming(entry) else AnswersOf(entry)
        self.samples = 0
        """Number of samples."""
        self._groups = array("q")
        self._numbers: dict[str, int] = {}
        self._count = 0
        self._units = array("H")
        """Group of patients of each answer that the metric keeps."""
        self._used: np.ndarray | None = None
        """True for each group with an answer, [UNITS]; None: the metric keeps all answers."""

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        self._metric.add(prediction, reference)
        if isinstance(self._metric, PartedMetric):
            self._units.append(unit_of(reference.group, self.samples))
        self.samples += 1
        if self._used is None:
            number = self._count
            if reference.group is not None:
                number = self._numbers.setdefault(str(reference.group), number)
            self._count += number == self._count
            self._groups.append(number)
        if len(self._units) == FEW:
            self._move()

    @property
    def metric(self) -> StreamingMetric:
        """Return the metric, whose figures cover all answers so far."""
        if self._used is not None:
            self._move()
        return self._metric

    @property
    def groups(self) -> np.ndarray:
        """Number of the group of each sample, [N], from 0. A sample without a group is a group of its own.

        From `FEW` answers on, number of each group of patients with an answer, [UNITS]; 0 for others, whose weights
        have no effect.
        """
        if self._used is None:
            return np.array(self._groups, int)
        self._move()
        return np.where(self._used, np.cumsum(self._used) - 1, 0)

    def _move(self) -> None:
        """Replace the answers that the metric keeps by the sums of their groups."""
        assert isinstance(self._metric, PartedMetric)
        units = np.array(self._units, np.int64)
        if self._used is None:
            self._used = np.zeros(UNITS, bool)
            self._groups, self._numbers = array("q"), {}
        if len(units):
            self._used[units] = True
            self._metric.move(units)
            self._units = array("H")

    def result(self, resamples: int = RESAMPLES) -> Figures:
        """Return the figures; `_ci_low` and `_ci_high` after a name are the limits of its 95 % interval.

        `interval_groups` is the number of groups of patients of the intervals, from `FEW` answers on.
        """
        if not self.samples:
            return {"samples": 0}
        metric, groups = self.metric, self.groups
        point = metric.figures(np.ones((1, len(groups))))
        if not point:
            return metric.counts()
        drawn = [metric.figures(weights) for weights in resampled_weights(groups, resamples)]
        figures: Figures = {}
        for name, value in point.items():
            figures[name] = float(value[0])
            if metric.has_interval(name):
                limits = interval(np.concatenate([chunk[name] for chunk in drawn]))
                figures[f"{name}_ci_low"], figures[f"{name}_ci_high"] = limits
        used = {} if self._used is None else {"interval_groups": int(self._used.sum())}
        return figures | metric.counts() | used


class Scorer:
    """Metrics of a stream of answers.

    A metric that is for several tasks of the samples has figures for each: `mae/counting` and `mae/regression`.

    Args:
        metrics: Name -> entry of METRICS.
    """

    def __init__(self, metrics: Mapping[str, Entry]) -> None:
        self.metrics = metrics
        self._series: dict[str, dict[str | None, Series]] = {name: {} for name in metrics}
        self._scored: dict[tuple[str, str | None], int] = {}

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        contents = contents_of(reference)
        for name, entry in self.metrics.items():
            tasks = tasks_of(entry)
            task = reference.task if tasks else None
            if task is not None and task not in tasks:
                continue
            series = self._series[name]
            if task not in series:
                series[task] = Series(entry)
            series[task].add(prediction, reference)
            key, content = (name, task), part_read(entry)
            self._scored[key] = self._scored.get(key, 0) + (content is None or content in contents)

    def series(self) -> dict[str, Series]:
        """Return the series of each metric; those of several tasks are named `METRIC/TASK`."""
        return {title: self._series[name][task] for title, name, task in self._titles()}

    def figures(self) -> dict[str, Figures]:
        """Return the figures of each metric; see `series` for the names."""
        return {title: series.result() for title, series in self.series().items()}

    def scored(self) -> dict[str, int]:
        """Return the number of rows whose reference has the content that a metric reads, by the names of `series`."""
        return {title: self._scored[name, task] for title, name, task in self._titles()}

    def _titles(self) -> Iterable[tuple[str, str, str | None]]:
        """Yield the title, the name and the task of each series."""
        for name, series in self._series.items():
            for task in series:
                yield (f"{name}/{task}" if len(series) > 1 and task else name), name, task


def is_streaming(entry: Entry) -> bool:
    """Return True for a class of `StreamingMetric`."""
    return isinstance(entry, type) and issubclass(entry, StreamingMetric)


def require(entry: Entry) -> None:
    """Raise `ConfigError` if a package or a program that a metric needs is not installed."""
    if isinstance(entry, type) and issubclass(entry, StreamingMetric):
        entry.require()


def needs_scores(entry: Entry) -> bool:
    """Return True for a metric of the probabilities of options."""
    return isinstance(entry, type) and issubclass(entry, StreamingMetric) and entry.needs_scores


def tasks_of(entry: Entry) -> frozenset[str]:
    """Return the tasks that a metric is for; empty: all."""
    return entry.tasks if isinstance(entry, type) and issubclass(entry, StreamingMetric) else frozenset()
