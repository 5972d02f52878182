"""Comparison of runs on their common samples: paired differences of figures with 95 % intervals by patient."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mllm.contents import contents_of
from mllm.engine.predictions import answers_of, read_predictions
from mllm.engine.strata import Column, patients_of, strata_of
from mllm.errors import ConfigError, hint
from mllm.metrics.base import REQUIRED, content_read, part_read
from mllm.metrics.bootstrap import RESAMPLES, interval, resampled_weights
from mllm.metrics.scoring import Entry, Scorer, Series, needs_scores, tasks_of
from mllm.registry import METRICS
from mllm.report.figures import INTERVAL, UNDEFINED, aligned, format_number
from mllm.run_files import METRICS as METRICS_FILE
from mllm.run_files import PREDICTIONS
from mllm.structures import Answer

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
    common = _common_rows(folders, runs)
    _check_metrics(folders, common, metrics)
    strata = [stratum for column in columns for stratum in strata_of(common[0], column)]
    parts = []
    for stratum in strata:
        rows = paired_differences(metrics, [[run[index] for index in stratum.indices] for run in common])
        rows = [_without_limits(row) for row in rows] if stratum.is_small else rows
        parts.append(Part(stratum.column, stratum.value, len(stratum.indices), stratum.patients, rows))
    labels = [str(folder) for folder in folders]
    return Comparison(labels, len(common[0]), patients_of(common[0]), paired_differences(metrics, common), parts)


def _check_metrics(folders: Sequence[Path], common: Sequence[Sequence[Row]], metrics: Mapping[str, Entry]) -> None:
    """Raise `ConfigError` for a metric that needs scores which a run does not have, or has nothing to compare."""
    for name, entry in metrics.items():
        if not needs_scores(entry):
            continue
        for folder, rows in zip(folders, common, strict=True):
            if any(not row.get("scores") for row in rows):
                raise ConfigError(
                    f"metric '{name}' needs the probabilities of options, which the answers in {folder} do not have, "
                    "because they were generated: evaluate it again with --cfg-options "
                    "data_args.gen_kwargs.scoring=options, or choose another metric"
                )
    references = [answers_of(row)[1] for row in common[0]]
    applies = {name: _scored(METRICS.find(name), references) > 0 for name in METRICS.names()}
    for name, entry in metrics.items():
        if not applies[name]:
            content = content_read(entry)
            lack = "has its task" if content is None else f"has {REQUIRED[content]}"
            others = ", ".join(other for other, fits in applies.items() if fits)
            raise ConfigError(
                f"metric '{name}' cannot be computed, because none of the {len(references):,} common samples {lack}; "
                f"metrics that apply are {others}"
            )


def _scored(entry: Entry, references: Sequence[Answer]) -> int:
    """Return the number of references of the tasks of a metric that have the content that it reads."""
    tasks, content = tasks_of(entry), part_read(entry)
    return sum(
        (not tasks or reference.task is None or reference.task in tasks)
        and (content is None or content in contents_of(reference))
        for reference in references
    )


def _without_limits(row: Difference) -> Difference:
    return replace(row, limits=[None] * len(row.limits), difference_limits=[None] * len(row.difference_limits))


def paired_differences(metrics: Mapping[str, Entry], runs: Sequence[Sequence[Row]]) -> list[Difference]:
    """Return the figures of several predictions of the same samples, and their differences from the first ones.

    Args:
        metrics: Name -> metric.
        runs: Rows of `predictions.jsonl`, of the same samples in the same order. The references are those of the first.
    """
    scorers = []
    for rows in runs:
        scorer = Scorer(metrics)
        for row, first in zip(rows, runs[0], strict=True):
            scorer.add(answers_of(row)[0], answers_of(first)[1])
        scorers.append(scorer)
    series = [scorer.series() for scorer in scorers]
    return [difference for title in series[0] for difference in _differences(title, [part[title] for part in series])]


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
