"""Summary of the data of a run, and plots of measures and of their predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from mllm.dataset.checking import Splits
from mllm.dataset.summary import counts, summarize
from mllm.engine.predictions import answers_of
from mllm.files import write_json
from mllm.metrics.measures import Measures
from mllm.metrics.scoring import Series
from mllm.private_messages import is_private
from mllm.report.measure_plots import plot_agreement, plot_distributions
from mllm.run_files import AGREEMENT_PLOT, DATA_SUMMARY, MEASURES_PLOT

logger = logging.getLogger(__name__)


def describe_data(splits: Splits, folder: Path) -> None:
    """Write counts, dropped rows and statistics of the measures, on the first process only; see `write_summary`."""
    if not PartialState().is_main_process:
        return
    summary = write_summary(splits, folder)
    if is_private():
        return
    if any(splits.measure_tables.values()):
        plot_distributions(splits.measure_tables, folder / MEASURES_PLOT)
    for name, split in summary.items():
        lines = [_statistics(measure, figures) for measure, figures in split["measures"].items() if "mean" in figures]
        if lines:
            logger.info("%s: %s", name, "; ".join(lines))


def write_summary(splits: Splits, folder: Path) -> dict[str, Any]:
    """Write `data_summary.json` to `folder` and return its contents.

    That of a private run has the counts alone: a minimum is the value of a row.
    """
    summary = counts(splits) if is_private() else summarize(splits)
    write_json(folder / DATA_SUMMARY, summary)
    return summary


def draw_agreement(rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Plot predicted over true measures of the rows of an evaluation, if they have any and the run is not private."""
    if is_private():
        return
    series = Series(Measures)
    for row in rows:
        series.add(*answers_of(row))
    measures: Any = series.metric
    columns = list(measures.columns())
    if columns:
        predicted, true = ({name: values[side] for name, *values in columns} for side in (0, 1))
        plot_agreement(predicted, true, folder / AGREEMENT_PLOT)


def _statistics(name: str, figures: Mapping[str, float]) -> str:
    """Return `EF 55.2 +- 12.4 (16.1 to 74.9)`: mean, standard deviation and range."""
    return f"{name} {figures['mean']:.1f} +- {figures['std']:.1f} ({figures['min']:.1f} to {figures['max']:.1f})"
