"""Pictures of a run, for people who would rather look than read."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402


def plot_loss(rows: list[dict[str, float]], path: Path) -> None:
    """The training and validation loss over the steps, as a PNG."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.5, markersize=4)
    axes.set_xlabel("update")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    temporary = path.with_name(f"{path.name}.tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
