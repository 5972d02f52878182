"""Plots of the losses of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_loss(rows: list[dict[str, float]], path: Path) -> None:
    """Plot training and validation loss over the updates as PNG."""
    from matplotlib.figure import Figure  # takes half a second, so it is imported only for a plot

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        _draw(axes, rows, key, label, style)
    _finish(axes, "loss (objectives, weighted)")
    save_figure(figure, path)


NOT_TERMS = ("loss", "learning_rate", "grad_norm", "epoch", "step", "padding_share", "seconds", "seconds_left")
"""Keys of a row that are not terms of objectives. Keys that end with a unit are not terms, either."""


def plot_progress(rows: list[dict[str, float]], path: Path) -> None:
    """Plot the loss and the unweighted terms of the objectives over the updates as PNG."""
    from matplotlib.figure import Figure  # takes half a second, so it is imported only for a plot

    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    loss_axes, term_axes = figure.subplots(1, 2)
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        _draw(loss_axes, rows, key, label, style)
    endings = ("_per_second", "_gb", "_percent", "_runtime")
    terms = dict.fromkeys(key for row in rows for key in row if key not in NOT_TERMS and not key.endswith(endings))
    for name in (key for key in terms if not key.startswith("eval_")):
        _draw(term_axes, rows, name, name, "-")
        _draw(term_axes, rows, f"eval_{name}", f"{name}, validation", "o-")
    _finish(loss_axes, "loss (objectives, weighted)")
    _finish(term_axes, "term of an objective, unweighted")
    save_figure(figure, path)


def _draw(axes: Axes, rows: list[dict[str, float]], key: str, label: str, style: str) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.5, markersize=4)


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel("update")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    temporary = path.with_name(f"{path.name}.tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
