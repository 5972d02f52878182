"""Figures of an evaluation as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mllm.engine.strata import SMALL as SMALL_STRATUM
from mllm.metrics.measure_table import UNDEFINED, agreement_table

Figures = Mapping[str, float]
SMALL = " *"
"""Mark of a stratum that is too small for intervals."""
BASELINES = ("majority_class", "chance")
"""Accuracies of answers that do not depend on the question: the most frequent reference, and a uniform guess."""
INTERVAL = ("_ci_low", "_ci_high")
"""Ends of the names of the limits of a 95 % interval."""


def figures_line(
    name: str,
    trained: Figures,
    untrained: Figures | None,
    scored: int,
    rows: int,
    differences: Figures | None = None,
) -> str:
    """Return the figures of the metric `name` on the test split as one line; those of measures as a table.

    Examples: `held-out accuracy: 96.4 % [92.9, 99.3] (untrained 13.9 % [10.0, 17.1], difference +82.5 % [+78.6, +86.4],
    majority class 30.0 %, chance 14.3 %)`,
    `held-out choice: accuracy 75.0 % (majority class 50.0 %, chance 33.3 %), unreadable 3, samples 80`,
    `held-out rec (8 of 20 rows have a target): accuracy 0.8750, failed 0, samples 8 (untrained: ...)`.

    Args:
        name: Name of the metric.
        trained: Figures of the trained model.
        untrained: Figures of the model before the training. None: they were not computed.
        scored: Number of rows whose reference has what the metric compares.
        rows: Number of answered rows.
        differences: Figures of the trained model minus those of the untrained one, on the same samples.
    """
    title = f"held-out {name}" + (f" ({scored:,} of {rows:,} rows have a target)" if scored < rows else "")
    if name == "measures":
        untrained_text = f"\nuntrained:\n{agreement_table(untrained)}" if untrained else ""
        return f"{title}, with 95 % intervals by patient:\n{agreement_table(trained)}{untrained_text}"
    line = f"{title}: "
    figures = dict(trained)
    if {"accuracy", *BASELINES} <= trained.keys():
        label = "" if name == "accuracy" else "accuracy "
        own = {key: figures.pop(key) for key in list(figures) if key.startswith("accuracy")}
        line += f"{label}{_percent(own)} ({_baselines(trained, untrained, differences)})"
        figures = {} if name == "accuracy" else {key: figures[key] for key in figures if key not in BASELINES}
        line += ", " if figures else ""
        untrained = {key: untrained[key] for key in figures if key in untrained} if untrained else None
        differences = {key: differences[key] for key in figures if key in differences} if differences else None
    before = f"untrained: {format_figures(untrained)}" if untrained else ""
    change = f"; difference: {format_figures(differences, '+')}" if before and differences else ""
    return line + format_figures(figures) + (f" ({before}{change})" if before else "")


def figures_table(figures: Mapping[str, Figures], scored: Mapping[str, int] | None = None, rows: int = 0) -> str:
    """Return the figures as text in three columns: metric, figure, value.

    `scored` is the number of the `rows` whose reference has what a metric compares; lower numbers are in the table.
    """
    lines = [("metric", "figure", "value")]
    for metric, values in figures.items():
        lines += [(metric, name, value) for name, value in formatted(values).items()]
        if scored and scored[metric] < rows:
            lines.append((metric, "rows with a target", f"{scored[metric]:,} of {rows:,}"))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    text = [f"{line[0]:{widths[0]}}  {line[1]:{widths[1]}}  {line[2]:>{widths[2]}}" for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def format_figures(figures: Mapping[str, float], sign: str = "") -> str:
    """Format figures as one line: `accuracy 0.8750 [0.8125, 0.9375], failed 3`. See `formatted` for `sign`."""
    return ", ".join(f"{name} {value}" for name, value in formatted(figures, sign=sign).items())


def formatted(figures: Mapping[str, float], scale: float = 1.0, decimals: int = 4, sign: str = "") -> dict[str, str]:
    """Return each figure as text, with its 95 % interval in brackets if it has one.

    Args:
        figures: Figures, and the limits of their intervals (`accuracy_ci_low`, `accuracy_ci_high`).
        scale: Factor of the values.
        decimals: Digits after the point of numbers that are not whole.
        sign: '+': write the sign of positive numbers, too.
    """
    texts = {}
    for name, value in figures.items():
        if name.endswith(INTERVAL):
            continue
        limits = [figures[name + end] for end in INTERVAL if name + end in figures]
        limits = limits if all(map(math.isfinite, limits)) else []
        shown = ", ".join(format_number(scale * limit, decimals, sign) for limit in limits)
        texts[name] = format_number(value if isinstance(value, int) else scale * value, decimals, sign) + (
            f" [{shown}]" if limits else ""
        )
    return texts


def format_number(value: float, decimals: int = 4, sign: str = "") -> str:
    """Format an integer with separators of thousands, any other number with `decimals` digits after the point.

    A number that is not finite is `undefined`.
    """
    if not math.isfinite(value):
        return UNDEFINED
    return f"{value:{sign},}" if isinstance(value, int) else f"{value:{sign}.{decimals}f}"


def strata_table(strata: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the figures by stratum as text: a line for each stratum, with the first figure of each metric.

    Args:
        strata: Figures by stratum; see `mllm.engine.strata.stratified`.
    """
    metrics = dict.fromkeys(name for values in strata.values() for part in values.values() for name in part["figures"])
    lines = [["stratum", "value", "samples", "patients", *metrics]]
    for column, values in strata.items():
        for value, part in values.items():
            patients = "unknown" if part["patients"] is None else f"{part['patients']:,}"
            cells = [_first_figure(part["figures"].get(metric, {})) for metric in metrics]
            lines.append([column, value, f"{part['samples']:,}", patients + SMALL * part["small"], *cells])
    has_small = any(part["small"] for values in strata.values() for part in values.values())
    note = f"\n{SMALL.strip()} fewer than {SMALL_STRATUM} patients: too few for an interval" if has_small else ""
    return aligned(lines) + note


def _first_figure(figures: Figures) -> str:
    """Return the first figure of a metric with its name; empty without figures."""
    return next((f"{name} {value}" for name, value in formatted(figures).items() if name != "samples"), "")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a table; the first row is the header."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _baselines(trained: Figures, untrained: Figures | None, differences: Figures | None) -> str:
    """Return the accuracies with which the accuracy of a model is compared."""
    texts = [f"untrained {_percent(untrained)}"] if untrained else []
    if untrained and differences and "accuracy" in differences:
        texts.append(f"difference {_percent(differences, '+')}")
    for name, label in zip(BASELINES, ("majority class", "chance"), strict=True):
        texts.append(f"{label} {_percent({'accuracy': trained[name]})}")
    return ", ".join(texts)


def _percent(accuracy: Figures, sign: str = "") -> str:
    """Return an accuracy in percent with its interval: `75.0 % [62.5, 87.5]`."""
    value, _, limits = formatted(accuracy, 100, 1, sign)["accuracy"].partition(" ")
    return value if value == UNDEFINED else f"{value} % {limits}".strip()
