"""Figures of an evaluation as text."""

from __future__ import annotations

from collections.abc import Mapping

from mllm.engine.evaluation import format_figures
from mllm.metrics.measure_table import agreement_table


def figures_line(name: str, trained: Mapping[str, float], untrained: Mapping[str, float] | None) -> str:
    """Return the figures of the metric `name` on the test split as one line; those of measures as a table.

    Examples: `held-out accuracy: 96.4 % (untrained 13.9 %, majority class 30.0 %, chance 14.3 %)`,
    `held-out rec: accuracy 0.8750, failed 0, samples 8 (untrained: accuracy 0.0000, ...)`.
    """
    if name == "accuracy":
        before = f"untrained {100 * untrained['accuracy']:.1f} %, " if untrained else ""
        return (
            f"held-out accuracy: {100 * trained['accuracy']:.1f} % ({before}majority class "
            f"{100 * trained['majority']:.1f} %, chance {100 * trained['chance']:.1f} %)"
        )
    if name == "measures":
        before = f"\nuntrained:\n{agreement_table(untrained)}" if untrained else ""
        return f"held-out measures, with 95 % intervals by patient:\n{agreement_table(trained)}{before}"
    before = f" (untrained: {format_figures(untrained)})" if untrained else ""
    return f"held-out {name}: {format_figures(trained)}{before}"
