"""What a run's data holds, and how well measures were predicted: `data_summary.json` and two pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from mllm.dataset.base import SampleDataset
from mllm.dataset.summary import measure_table, summarize
from mllm.files import write_json
from mllm.metrics.measures import stated_measures
from mllm.report.measure_plots import plot_agreement, plot_distributions

SUMMARY, DISTRIBUTIONS, AGREEMENT = "data_summary.json", "measures.png", "agreement.png"

logger = logging.getLogger(__name__)


def describe_data(splits: Mapping[str, SampleDataset], folder: Path) -> None:
    """Writes counts, what was dropped and the spread of every measure; on the first process only."""
    if not PartialState().is_main_process:
        return
    values = {name: measure_table(split) for name, split in splits.items()}
    told = summarize(splits, values)
    write_json(folder / SUMMARY, told)
    if any(values.values()):
        plot_distributions(values, folder / DISTRIBUTIONS)
    for name, split in told.items():
        spread = [_spread(measure, figures) for measure, figures in split["measures"].items() if "mean" in figures]
        if spread:
            logger.info("%s: %s", name, "; ".join(spread))


def draw_agreement(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draws predicted over true measures of an examination's rows, where they have any."""
    true = [row.get("reference_measures") or stated_measures(row["reference"]) for row in rows]
    said = [row.get("measures") or stated_measures(row["prediction"]) for row in rows]
    names = dict.fromkeys(name for row in true for name in row)
    if names:
        told, wanted = (
            {name: np.array([row.get(name, math.nan) for row in side]) for name in names} for side in (said, true)
        )
        plot_agreement(told, wanted, folder / AGREEMENT)


def _spread(name: str, figures: Mapping[str, float]) -> str:
    """`EF 55.2 +- 12.4 (16.1 to 74.9)`."""
    return f"{name} {figures['mean']:.1f} +- {figures['std']:.1f} ({figures['min']:.1f} to {figures['max']:.1f})"
