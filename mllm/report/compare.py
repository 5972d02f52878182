"""Comparison of runs on their common samples: paired differences of figures with 95 % intervals by patient."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from mllm.contents import contents_of
from mllm.engine.predictions import prediction_in, read_predictions, reference_in
from mllm.engine.strata import Column, Stratum, strata_of
from mllm.errors import ConfigError, hint
from mllm.metrics.base import REQUIRED, content_read, part_read
from mllm.metrics.bootstrap import RESAMPLES, interval, resampled_weights
from mllm.metrics.scoring import Entry, Scorer, Series, needs_scores, tasks_of
from mllm.registry import METRICS
from mllm.report.common_samples import Samples, common_samples
from mllm.report.figures import INTERVAL, UNDEFINED, aligned, format_number
from mllm.run_files import METRICS as METRICS_FILE
from mllm.run_files import PREDICTIONS
from mllm.structures import Answer

Row = dict[str, Any]
Limits = tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """A figure of several runs on their common samples."""

    metric: str
    figure: str
    values: list[float]
    """Value of each run."""
    limits: list[Limits]
    """95 % interval of each value. None: the figure has none."""
    differences: list[float]
    """Value of each run after the first, minus that of the first."""
    difference_limits: list[Limits]
    """95 % interval of each difference, from bootstrap samples in which all runs have the same patients."""


@dataclass(frozen=True)
class Part:
    """Figures of runs on the common samples of a stratum."""

    column: str
    value: str
    samples: int
    patients: int | None
    """Number of patients; None if a sample has no patient."""
    rows: list[Difference]
    """Without intervals if the stratum is small."""


@dataclass(frozen=True)
class Comparison:
    """Figures of runs on their common samples."""

    names: list[str]
    samples: int
    """Number of common samples."""
    patients: int | None
    """Number of patients of the common samples; None if a sample has no patient."""
    rows: list[Difference]
    strata: list[Part] = field(default_factory=list)


def compare(folders: Sequence[Path], names: Sequence[str] = (), by: Sequence[str] = ()) -> Comparison:
    """Compare runs by the predictions in their folders.

    A sample is identified by its source, the file and line of its row. All runs are scored on the samples that all of
    them have.

    Args:
        folders: Run folders, or output folders of `mllm evaluate`; the first one is the baseline.
        names: Names of metrics; empty: those that `metrics.json` of all folders has.
        by: Columns by whose values the samples are divided, too; see `Column.parse`.

    Raises:
        ConfigError: A folder has no predictions, the runs have no sample or metric in common, a metric is unknown or
            has nothing to compare, or the predictions of the first run have no such column.
    """
    columns = [Column.parse(text) for text in by]
    runs = [read_predictions(folder / PREDICTIONS) for folder in folders]
    metrics = {name: METRICS.find(name) for name in _metric_names(folders, names)}
    samples = common_samples(folders, runs)
    _check_metrics(folders, samples, metrics)
    whole: tuple[Stratum, Paired] = Stratum(), Paired(metrics)
    for rows in samples:
        whole[0].add(rows[0])
        whole[1].add(rows)
    strata = [_part(column, key[1], own, metrics) for column, key, own in strata_of(samples, columns, itemgetter(0))]
    labels = [str(folder) for folder in folders]
    return Comparison(labels, whole[0].samples, whole[0].patients.count, whole[1].differences(), strata)


def _part(column: str, value: str, samples: Iterable[Sequence[Row]], metrics: Mapping[str, Entry]) -> Part:
    """Return the figures of the samples of a stratum."""
    stratum, paired = Stratum(), Paired(metrics)
    for sample in samples:
        stratum.add(sample[0])
        paired.add(sample)
    rows = paired.differences()
    rows = [_without_limits(row) for row in rows] if stratum.is_small else rows
    return Part(column, value, stratum.samples, stratum.patients.count, rows)


def _check_metrics(folders: Sequence[Path], samples: Samples, metrics: Mapping[str, Entry]) -> None:
    """Raise `ConfigError` for a metric that needs scores which a run does not have, or has nothing to compare."""
    scored = next((name for name, entry in metrics.items() if needs_scores(entry)), None)
    if scored is not None:
        for rows in samples:
            if not all(row.get("scores") for row in rows):
                folder = next(folder for folder, row in zip(folders, rows, strict=True) if not row.get("scores"))
                raise ConfigError(
                    f"metric '{scored}' needs the probabilities of options, which the answers in {folder} do not have, "
                    "because they were generated: evaluate it again with --cfg-options "
                    "data_args.gen_kwargs.scoring=options, or choose another metric"
                )
    fitting: set[str] = set()
    count = 0
    for rows in samples:
        reference = reference_in(rows[0])
        fitting |= {name for name in METRICS.names() if name not in fitting and _reads(METRICS.find(name), reference)}
        count += 1
        if metrics.keys() <= fitting:
            return
    for name, entry in metrics.items():
        if name not in fitting:
            content = content_read(entry)
            lack = "has its task" if content is None else f"has {REQUIRED[content]}"
            others = ", ".join(other for other in METRICS.names() if other in fitting)
            raise ConfigError(
                f"metric '{name}' cannot be computed, because none of the {count:,} common samples {lack}; "
                f"metrics that apply are {others}"
            )


def _reads(entry: Entry, reference: Answer) -> bool:
    """Return True if a reference is of the tasks of a metric and has the content that the metric reads."""
    tasks, content = tasks_of(entry), part_read(entry)
    is_for_it = not tasks or reference.task is None or reference.task in tasks
    return is_for_it and (content is None or content in contents_of(reference))


def _without_limits(row: Difference) -> Difference:
    return replace(row, limits=[None] * len(row.limits), difference_limits=[None] * len(row.difference_limits))


class Paired:
    """Metrics of several predictions of the same samples.

    Args:
        metrics: Name -> metric.
    """

    def __init__(self, metrics: Mapping[str, Entry]) -> None:
        self._metrics = metrics
        self._scorers: list[Scorer] = []

    def add(self, rows: Sequence[Row]) -> None:
        """Read the rows of a sample, one of each run. Its reference is that of the first."""
        self._scorers = self._scorers or [Scorer(self._metrics) for _ in rows]
        reference = reference_in(rows[0])
        for row, scorer in zip(rows, self._scorers, strict=True):
            scorer.add(prediction_in(row), reference)

    def differences(self) -> list[Difference]:
        """Return the figures of all runs, and their differences from the first run."""
        series = [scorer.series() for scorer in self._scorers]
        titles = series[0] if series else {}
        return [row for title in titles for row in _differences(title, [part[title] for part in series])]


def paired_differences(metrics: Mapping[str, Entry], samples: Iterable[Sequence[Row]]) -> list[Difference]:
    """Return the figures of several predictions of the same samples, and their differences from the first ones.

    Args:
        metrics: Name -> metric.
        samples: Rows of `predictions.jsonl` of each sample, one of each run.
    """
    paired = Paired(metrics)
    for rows in samples:
        paired.add(rows)
    return paired.differences()


def figures_of_differences(rows: Sequence[Difference]) -> dict[str, dict[str, float]]:
    """Return the differences of the second predictions from the first, metric -> figure -> value.

    Limits of 95 % intervals are named as those of figures, `_ci_low` and `_ci_high`.
    """
    figures: dict[str, dict[str, float]] = {}
    for row in rows:
        values = figures.setdefault(row.metric, {})
        values[row.figure] = row.differences[0]
        limits = row.difference_limits[0]
        if limits is not None:
            values |= {row.figure + end: limit for end, limit in zip(INTERVAL, limits, strict=True)}
    return figures


def _metric_names(folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Return the metrics to compute, in the order of the first folder."""
    for name in names:
        if name not in METRICS.names():
            raise ConfigError(f"unknown metric '{name}'{hint(name, METRICS.names())}")
    if names:
        return list(dict.fromkeys(names))
    own = [[name.partition("/")[0] for name in _figures(folder)] for folder in folders]
    common = [name for name in dict.fromkeys(own[0]) if all(name in other for other in own)]
    known = [name for name in common if name in METRICS.names()]
    if not known:
        raise ConfigError(
            f"{' and '.join(map(str, folders))} have no metric in common: name one with --metric, such as accuracy"
        )
    return known


def _figures(folder: Path) -> dict[str, Any]:
    """Return the figures of `metrics.json` in a folder; none without the file."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return {}
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} has no figures ({error}): evaluate the run again") from error
    return dict(figures)


def _differences(title: str, series: Sequence[Series]) -> list[Difference]:
    """Return the figures of a metric of all runs."""
    groups = series[0].groups
    metrics = [part.metric for part in series]
    ones = np.ones((1, len(groups)))
    points = [{name: float(value[0]) for name, value in metric.figures(ones).items()} for metric in metrics]
    if not points[0]:
        return _without_weights(title, series)
    chunks = [[metric.figures(weights) for metric in metrics] for weights in resampled_weights(groups, RESAMPLES)]
    rows = []
    for figure in filter(metrics[0].has_interval, points[0]):  # others, such as chance, depend on no answer
        values = [point[figure] for point in points]
        drawn = [np.concatenate([chunk[i][figure] for chunk in chunks]) for i in range(len(series))]
        rows.append(
            Difference(
                title,
                figure,
                values,
                [interval(own) for own in drawn],
                [value - values[0] for value in values[1:]],
                [interval(own - drawn[0]) for own in drawn[1:]],
            )
        )
    return rows


def _without_weights(title: str, series: Sequence[Series]) -> list[Difference]:
    """Return the figures of a metric that is a function of all answers, without intervals of the differences."""
    figures = [part.metric.counts() for part in series]
    rows = []
    for name in figures[0]:
        if name.endswith(INTERVAL) or not all(name in own for own in figures):
            continue
        values = [own[name] for own in figures]
        changes = [value - values[0] for value in values[1:]]
        rows.append(Difference(title, name, values, [None] * len(values), changes, [None] * len(changes)))
    return rows


def comparison_table(comparison: Comparison) -> str:
    """Return a comparison as text: a legend of the runs, and a table with a line for each figure.

    Figures by stratum follow in a table each.
    """
    legend = [f"run {number}: {name}" for number, name in enumerate(comparison.names, start=1)]
    units = "samples, grouped by patient where one is known" if comparison.patients is None else "patients"
    note = (
        f"{_size(comparison.samples, comparison.patients, 'common samples')}; 95 % intervals in brackets by bootstrap "
        f"over {units}, the same in all runs"
    )
    blocks = ["\n".join([*legend, note]), _table(comparison.rows, len(comparison.names))]
    for part in comparison.strata:
        size = _size(part.samples, part.patients, "samples")
        has_limits = any(limits is not None for row in part.rows for limits in row.limits)
        small = "" if has_limits else "; too few for intervals"
        title = f"{part.column}: {part.value}, {size}{small}"
        blocks.append(f"{title}\n{_table(part.rows, len(comparison.names))}")
    return "\n\n".join(blocks)


def _size(samples: int, patients: int | None, noun: str) -> str:
    """Return a number of samples, with that of their patients if it is known."""
    return f"{samples:,} {noun}" + ("" if patients is None else f" of {patients:,} patients")


def _table(rows: Sequence[Difference], count: int) -> str:
    """Return the figures of `count` runs as a table."""
    header = ["metric", "figure", *(f"run {n + 1}" for n in range(count)), *(f"{n + 1} - 1" for n in range(1, count))]
    lines = [header]
    for row in rows:
        values = [*zip(row.values, row.limits, strict=True)]
        changes = [*zip(row.differences, row.difference_limits, strict=True)]
        cells = [_cell(*pair, sign="") for pair in values] + [_cell(*pair, sign="+") for pair in changes]
        lines.append([row.metric, row.figure, *cells])
    return aligned(lines)


def _cell(value: float, limits: Limits, sign: str) -> str:
    if math.isnan(value):
        return UNDEFINED
    shown = f"{value:+,}" if sign and isinstance(value, int) else f"{value:+.4f}" if sign else format_number(value)
    if limits is None or not all(map(math.isfinite, limits)):
        return shown
    low, high = (f"{limit:{sign}.4f}" for limit in limits)
    return f"{shown} [{low}, {high}]"
