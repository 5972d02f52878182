"""Plots of the losses of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mllm.files import replaced_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_loss(rows: Sequence[Mapping[str, float]], path: Path, terms: Mapping[str, str]) -> None:
    """Plot training and validation loss over the updates as PNG, and the terms of the objectives beside them.

    Args:
        rows: Entries of the log; see `mllm.engine.run_log.rows_of`.
        path: The file.
        terms: Name of an objective -> its label, for each term to plot. Empty: the loss alone.
    """
    from matplotlib.figure import Figure  # takes half a second, so it is imported only for a plot

    figure = Figure(figsize=(11 if terms else 7, 4), dpi=120)
    set_margins(figure, columns=2 if terms else 1)
    axes = figure.subplots(1, 2 if terms else 1, squeeze=False)[0]
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        _draw(axes[0], rows, key, label, style)
    _finish(axes[0], "loss (weighted sum of the terms)" if len(terms) > 1 else "loss")
    for number, (name, label) in enumerate(terms.items()):
        color = f"C{number % 10}"  # that of a term is the same in training and validation
        _draw(axes[1], rows, name, label, "-", color)
        _draw(axes[1], rows, f"eval_{name}", f"{label}, validation", "o--", color)
    if terms:
        _finish(axes[1], "term of an objective, unweighted")
    save_figure(figure, path)


def _draw(
    axes: Axes, rows: Sequence[Mapping[str, float]], key: str, label: str, style: str, color: str | None = None
) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), style, label=label, color=color, linewidth=1.5, markersize=4)


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel("update")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()


def set_margins(figure: Figure, columns: int, rows: int = 1) -> None:
    """Set the margins around a grid of axes and between them in inches.

    An automatic layout would draw the whole figure twice.
    """
    left, right, bottom, top, column_gap, row_gap = 0.8, 0.2, 0.55, 0.35, 0.8, 0.65
    width, height = (float(side) for side in figure.get_size_inches())
    axes_width = (width - left - right - column_gap * (columns - 1)) / columns
    axes_height = (height - bottom - top - row_gap * (rows - 1)) / rows
    figure.subplots_adjust(
        left / width,
        bottom / height,
        1 - right / width,
        1 - top / height,
        wspace=column_gap / axes_width,
        hspace=row_gap / axes_height,
    )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with replaced_path(path) as temporary:
        figure.savefig(temporary, format="png")
