"""Pictures of a run, for people who would rather look than read."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402


def plot_loss(rows: list[dict[str, float]], path: Path) -> None:
    """The training and validation loss over the steps, as a PNG."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        _draw(axes, rows, key, label, style)
    _finish(axes, "loss (nats per supervised token)")
    _save(figure, path)


NO_TERMS = ("loss", "learning_rate", "grad_norm", "epoch", "step", "padding_share")
"""Keys of a row that are no objective's term, beside those with a unit in their names."""


def plot_progress(rows: list[dict[str, float]], path: Path) -> None:
    """The whole loss and, beside it, each objective's unweighted term over the steps, as a PNG."""
    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    whole, parts = figure.subplots(1, 2)
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        _draw(whole, rows, key, label, style)
    endings = ("_per_second", "_gb", "_percent", "_runtime")
    terms = dict.fromkeys(key for row in rows for key in row if key not in NO_TERMS and not key.endswith(endings))
    for name in (key for key in terms if not key.startswith("eval_")):
        _draw(parts, rows, name, name, "-")
        _draw(parts, rows, f"eval_{name}", f"{name}, validation", "o-")
    _finish(whole, "loss (objectives, weighted)")
    _finish(parts, "term of an objective, unweighted")
    _save(figure, path)


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


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
