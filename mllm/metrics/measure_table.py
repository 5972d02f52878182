"""The figures of measured numbers as a table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mllm.structures import UNITS

COLUMNS = {"mae": "MAE", "rmse": "RMSE", "r2": "R2", "bias": "bias", "category_agreement": "same category"}
"""The figures with an interval, and what they are called in the table."""


def agreement_table(figures: Mapping[str, float]) -> str:
    """What `mllm.metrics.measures.measures` gives, one line a measure, each figure with its 95 % interval.

    Without a figure the place is empty; what is NaN is a dash.
    """
    names = [key.removesuffix("_mae") for key in figures if key.endswith("_mae")]
    rows = [["", "samples", *COLUMNS.values(), "limits of agreement"]]
    for name in names:
        limits = [figures[f"{name}_loa_{end}"] for end in ("lower", "upper")]
        cells = [_with_interval(figures, f"{name}_{figure}") for figure in COLUMNS]
        label = f"{name} ({UNITS[name]})" if name in UNITS else name
        counts = _counts(*(int(figures[f"{name}_{which}"]) for which in ("samples", "failed", "unknown")))
        rows.append([label, counts, *cells, f"{_number(limits[0])} to {_number(limits[1])}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if "EF_against_volumes" in figures:
        gap = _number(figures["EF_against_volumes"])
        lines.append(f"EF differs from what the volumes say by {gap} points on average")
    return "\n".join(lines)


def _with_interval(figures: Mapping[str, float], key: str) -> str:
    if key not in figures:
        return ""
    low, high = figures[f"{key}_ci_low"], figures[f"{key}_ci_high"]
    interval = "" if math.isnan(low) else f" [{_number(low)}, {_number(high)}]"
    return _number(figures[key]) + interval


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _counts(samples: int, failed: int, unknown: int) -> str:
    """`90`, or `90 (2 without prediction, 1 without reference)`."""
    parts = ((failed, "without prediction"), (unknown, "without reference"))
    told = ", ".join(f"{count:,} {what}" for count, what in parts if count)
    return f"{samples:,}" + (f" ({told})" if told else "")
