"""Plots of measures: agreement of predictions with references, and distributions in the splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm.contents import UNITS
from mllm.engine.plots import save_figure, set_margins
from mllm.metrics.numbers import NORMAL_95

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_agreement(predicted: Mapping[str, np.ndarray], true: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a PNG with a scatter plot and a Bland-Altman plot of each measure in `true`.

    Arrays are [N]. Samples whose prediction or reference is NaN are left out, and so are measures without samples.
    """
    from matplotlib.figure import Figure  # half a second: imported where a plot is drawn

    pairs = {}
    for name, reference in true.items():
        prediction = np.asarray(predicted.get(name, np.full(len(reference), np.nan)), float)
        known = np.isfinite(prediction) & np.isfinite(reference)
        if known.any():
            pairs[name] = prediction[known], np.asarray(reference, float)[known]
    columns = max(len(pairs), 1)
    figure = Figure(figsize=(4.2 * columns, 7.6), dpi=120)
    set_margins(figure, columns, rows=2)
    grid = figure.subplots(2, columns, squeeze=False)
    for column, (name, (prediction, reference)) in enumerate(pairs.items()):
        _scatter(grid[0][column], name, prediction, reference)
        _bland_altman(grid[1][column], name, prediction, reference)
    save_figure(figure, path)


def plot_distributions(splits: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Write a PNG with overlaid histograms of the splits for each measure, in percent of the known values."""
    from matplotlib.figure import Figure  # half a second: imported where a plot is drawn

    names = list(dict.fromkeys(name for measures in splits.values() for name in measures))
    columns = max(len(names), 1)
    figure = Figure(figsize=(4.2 * columns, 3.6), dpi=120)
    set_margins(figure, columns)
    grid = figure.subplots(1, columns, squeeze=False)
    for axes, name in zip(grid[0], names, strict=False):
        known = {
            split: values[np.isfinite(values)]
            for split, measures in splits.items()
            if (values := measures.get(name)) is not None
        }
        all_values = np.concatenate(list(known.values()))
        bins = np.histogram_bin_edges(all_values, bins=int(np.clip(len(all_values) ** 0.5, 5, 40)))
        for number, (split, values) in enumerate(known.items()):
            if len(values):
                percentages = np.full(len(values), 100 / len(values))
                options = dict(weights=percentages, color=f"C{number}")
                axes.hist(values, bins, histtype="stepfilled", alpha=0.2, **options)
                axes.hist(values, bins, histtype="step", linewidth=1.5, label=f"{split} ({len(values):,})", **options)
        axes.set_xlabel(_label(name))
        axes.set_ylabel("% of the split")
        if len(all_values):
            axes.legend(fontsize=8)
    save_figure(figure, path)


def _scatter(axes: Axes, name: str, predicted: np.ndarray, true: np.ndarray) -> None:
    """Plot predictions over references, with the identity line."""
    both = np.concatenate([predicted, true])
    margin = 0.04 * (np.ptp(both) or 1.0)
    ends = [both.min() - margin, both.max() + margin]
    axes.plot(ends, ends, color="gray", linewidth=1, label="identity")
    axes.plot(true, predicted, "o", markersize=4, alpha=0.5, markeredgewidth=0)
    axes.set(
        xlim=ends,
        ylim=ends,
        aspect="equal",
        xlabel=f"true {_label(name)}",
        ylabel=f"predicted {_label(name)}",
    )
    error = np.abs(predicted - true).mean()
    axes.set_title(f"{name}: mean absolute error {error:.1f} {_unit(name)}, n = {len(true):,}", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _bland_altman(axes: Axes, name: str, predicted: np.ndarray, true: np.ndarray) -> None:
    """Plot errors over the mean of prediction and reference, with the bias and the limits of agreement."""
    error = predicted - true
    axes.plot((predicted + true) / 2, error, "o", markersize=4, alpha=0.5, markeredgewidth=0)
    bias = error.mean()
    axes.axhline(bias, color="C3", linewidth=1.2, label=f"bias {bias:+.1f} {_unit(name)}")
    if len(error) > 1:
        reach = NORMAL_95 * error.std(ddof=1)
        label = f"95 % limits {bias - reach:+.1f} to {bias + reach:+.1f} {_unit(name)}"
        axes.axhline(bias - reach, color="C3", linewidth=1.2, linestyle="--", label=label)
        axes.axhline(bias + reach, color="C3", linewidth=1.2, linestyle="--")
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set(xlabel=f"mean of predicted and true {_label(name)}", ylabel=f"predicted - true ({_unit(name)})")
    axes.margins(y=0.25)
    axes.legend(fontsize=8, loc="upper right")
    axes.grid(alpha=0.3)


def _unit(name: str) -> str:
    """Return the unit of differences: percentage points for percentages."""
    unit = UNITS.get(name, "")
    return "points" if unit == "%" else unit


def _label(name: str) -> str:
    return f"{name} ({UNITS[name]})" if name in UNITS else name
