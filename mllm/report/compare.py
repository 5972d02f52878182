"""Comparison of runs on their common samples: paired differences of figures with 95 % intervals by patient."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mllm.engine.predictions import answers_of, read_predictions
from mllm.errors import ConfigError, hint
from mllm.metrics.bootstrap import RESAMPLES, group_numbers, interval, resampled_weights
from mllm.metrics.scoring import Scorer, Series
from mllm.registry import METRICS
from mllm.report.figures import INTERVAL, format_number
from mllm.run_files import METRICS as METRICS_FILE
from mllm.run_files import PREDICTIONS

logger = logging.getLogger(__name__)
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
class Comparison:
    """Figures of runs on their common samples."""

    names: list[str]
    samples: int
    """Number of common samples."""
    patients: int
    """Number of patients of the common samples; a sample without a patient counts as one."""
    rows: list[Difference]


def compare(folders: Sequence[Path], names: Sequence[str] = ()) -> Comparison:
    """Compare runs by the predictions in their folders.

    A sample is identified by its source, the file and line of its row. All runs are scored on the samples that all of
    them have.

    Args:
        folders: Run folders, or output folders of `mllm evaluate`; the first one is the baseline.
        names: Names of metrics; empty: those that `metrics.json` of all folders has.

    Raises:
        ConfigError: A folder has no predictions, the runs have no sample or metric in common, or a metric is unknown.
    """
    runs = [read_predictions(folder / PREDICTIONS) for folder in folders]
    metrics = {name: METRICS.find(name) for name in _metric_names(folders, names)}
    common = _common_rows(folders, runs)
    scorers = []
    for rows in common:
        scorer = Scorer(metrics)
        for row, first in zip(rows, common[0], strict=True):
            prediction, _ = answers_of(row)
            scorer.add(prediction, answers_of(first)[1])
        scorers.append(scorer)
    series = [scorer.series() for scorer in scorers]
    differences = [
        difference for title in series[0] for difference in _differences(title, [part[title] for part in series])
    ]
    patients = len(set(group_numbers([row.get("patient") for row in common[0]]).tolist()))
    return Comparison([str(folder) for folder in folders], len(common[0]), patients, differences)


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


def _common_rows(folders: Sequence[Path], runs: Sequence[list[Row]]) -> list[list[Row]]:
    """Return the rows of the common samples of each run, in the order of the first run.

    Sources are compared with their folders, and without them if the runs then have no sample in common.
    """
    for whole in (True, False):
        keyed = [_by_source(rows, whole) for rows in runs]
        keys = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
        if keys:
            break
    else:
        raise ConfigError(
            f"{' and '.join(map(str, folders))} have no sample in common: compare evaluations of the same split"
        )
    common = [[rows[key] for key in keys] for rows in keyed]
    for folder, rows, all_rows in zip(folders, common, runs, strict=True):
        if len(rows) < len(all_rows):
            logger.warning("%s: %d of %d samples are in all runs", folder, len(rows), len(all_rows))
        other = sum(row["reference"] != first["reference"] for row, first in zip(rows, common[0], strict=True))
        if other:
            logger.warning("%s: %d references differ from those of %s, which are used", folder, other, folders[0])
    return common


def _by_source(rows: Sequence[Row], whole: bool) -> dict[tuple[str, int], Row]:
    """Return rows by their source and its occurrence. `whole`: with the folder of its file."""
    seen: Counter[str] = Counter()
    keyed = {}
    for row in rows:
        source = row["source"] if whole else row["source"].replace("\\", "/").rpartition("/")[2]
        keyed[source, seen[source]] = row
        seen[source] += 1
    return keyed


def _differences(title: str, series: Sequence[Series]) -> list[Difference]:
    """Return the figures of a metric of all runs."""
    groups = group_numbers(series[0].groups)
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
    """Return a comparison as text: a legend of the runs, and a table with a line for each figure."""
    legend = [f"run {number}: {name}" for number, name in enumerate(comparison.names, start=1)]
    count = len(comparison.names)
    header = ["metric", "figure", *(f"run {n + 1}" for n in range(count)), *(f"{n + 1} - 1" for n in range(1, count))]
    lines = [header]
    for row in comparison.rows:
        values = [*zip(row.values, row.limits, strict=True)]
        changes = [*zip(row.differences, row.difference_limits, strict=True)]
        cells = [_cell(*pair, sign="") for pair in values] + [_cell(*pair, sign="+") for pair in changes]
        lines.append([row.metric, row.figure, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    note = (
        f"{comparison.samples:,} common samples of {comparison.patients:,} patients; 95 % intervals in brackets by "
        "bootstrap over patients, the same in all runs"
    )
    return "\n".join([*legend, note, "", text[0], "-" * max(map(len, text)), *text[1:]])


def _cell(value: float, limits: Limits, sign: str) -> str:
    shown = f"{value:+,}" if sign and isinstance(value, int) else f"{value:+.4f}" if sign else format_number(value)
    if limits is None:
        return shown
    low, high = (f"{limit:{sign}.4f}" for limit in limits)
    return f"{shown} [{low}, {high}]"
