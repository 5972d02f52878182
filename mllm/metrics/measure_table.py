"""Text table of the figures of measures."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mllm.contents import UNITS

UNDEFINED = "undefined"
"""Text of a figure that is not defined for the answers, such as a recall without a target; in JSON it is null."""
COLUMNS = {"mae": "MAE", "rmse": "RMSE", "r2": "R2", "bias": "bias", "category_agreement": "same category"}
"""Figures with an interval -> their column titles."""


def agreement_table(figures: Mapping[str, float]) -> str:
    """Format the figures of `mllm.metrics.measures.measures` as a table: one line per measure, with 95 % intervals.

    The cell of a missing figure is empty.
    """
    names = [key.removesuffix("_mae") for key in figures if key.endswith("_mae")]
    rows = [["", "samples", *COLUMNS.values(), "limits of agreement"]]
    for name in names:
        limits = [figures[f"{name}_loa_{end}"] for end in ("lower", "upper")]
        cells = [_with_interval(figures, f"{name}_{figure}") for figure in COLUMNS]
        label = f"{name} ({UNITS[name]})" if name in UNITS else name
        counts = _counts(*(int(figures[f"{name}_{count}"]) for count in ("samples", "failed", "unknown")))
        rows.append([label, counts, *cells, f"{_number(limits[0])} to {_number(limits[1])}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if "EF_against_volumes" in figures:
        gap = _number(figures["EF_against_volumes"])
        lines.append(f"mean difference of EF and the EF of the volumes: {gap} percentage points")
    return "\n".join(lines)


def _with_interval(figures: Mapping[str, float], key: str) -> str:
    if key not in figures:
        return ""
    low, high = figures[f"{key}_ci_low"], figures[f"{key}_ci_high"]
    interval = "" if math.isnan(low) else f" [{_number(low)}, {_number(high)}]"
    return _number(figures[key]) + interval


def _number(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.2f}"


def _counts(samples: int, failed: int, unknown: int) -> str:
    """Format counts: `90`, or `90 (2 without prediction, 1 without reference)`."""
    parts = ((failed, "without prediction"), (unknown, "without reference"))
    excluded = ", ".join(f"{count:,} {reason}" for count, reason in parts if count)
    return f"{samples:,}" + (f" ({excluded})" if excluded else "")
