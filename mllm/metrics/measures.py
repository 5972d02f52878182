"""Metrics of measures such as EF and volumes: errors, bias and agreement, with bootstrap intervals.

Errors are prediction minus reference, in the unit of the measure: percentage points for EF, mL for volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from typing_extensions import override

from mllm.contents import stated_measures
from mllm.metrics.base import StreamingMetric, reads
from mllm.metrics.numbers import NORMAL_95
from mllm.registry import METRICS
from mllm.structures import Answer

CATEGORIES = (30.0, 40.0, 50.0)
"""Lower bounds in percent of moderately reduced, mildly reduced and normal EF. Below the first: severely reduced."""
WITH_INTERVAL = ("mae", "rmse", "r2", "bias", "category_agreement")
"""Figures with a 95 % confidence interval."""


@METRICS.register_module(name="measures")
@reads("measures")
class Measures(StreamingMetric):
    """Error, bias, limits of agreement and EF categories of the measures in answers.

    Measures are those of a head. For an answer without them, they are read from its text (`EF 58.4 %, EDV 120.3 mL`).

    Figures of each measure, such as EF: `EF_mae`, `EF_rmse`, `EF_r2` (coefficient of determination), `EF_bias` (mean
    error), `EF_loa_lower` and `EF_loa_upper` (limits of agreement: bias -/+ 1.96 standard deviations of the error, ddof
    1), `EF_samples` (with reference), `EF_unknown` (without reference) and `EF_failed` (with reference, without
    prediction). A failed prediction is not left out: it counts as 0 and as the wrong category. Only for EF:
    `EF_category_agreement`, the fraction in the same category of < 30, 30 to 40, 40 to 50 and >= 50 %, and
    `EF_against_volumes`, the mean of |EF - 100 (EDV - ESV) / EDV| over complete predictions.
    """

    def __init__(self) -> None:
        self._predicted: list[dict[str, float]] = []
        self._true: list[dict[str, float]] = []
        self._parts: dict[str, np.ndarray] | None = None

    @classmethod
    @override
    def has_interval(cls, figure: str) -> bool:
        """Return True for the figures in `WITH_INTERVAL`."""
        return figure.endswith(tuple(f"_{name}" for name in WITH_INTERVAL))

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the measures of one sample."""
        for rows, answer in ((self._predicted, prediction), (self._true, reference)):
            rows.append(answer.measures or stated_measures(answer.text))
        self._parts = None

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        if self._parts is None:
            self._parts = {name: _parts(self._column(self._predicted, name), true) for name, true in self._references()}
        result: dict[str, np.ndarray] = {}
        for name, parts in self._parts.items():
            figures = _figures(weights @ parts)
            if name != "EF":
                del figures["category_agreement"]
            result |= {f"{name}_{figure}": value for figure, value in figures.items()}
        return result

    def counts(self) -> dict[str, float]:
        """Return the numbers of known, unknown and failed measures, and the difference of EF and volumes."""
        result: dict[str, float] = {}
        for name, true in self._references():
            known = np.isfinite(true)
            result[f"{name}_samples"] = int(known.sum())
            result[f"{name}_unknown"] = int((~known).sum())
            result[f"{name}_failed"] = int((known & ~np.isfinite(self._column(self._predicted, name))).sum())
        names = {name for name, _ in self._references()}
        if {"EF", "EDV", "ESV"} <= names:
            result["EF_against_volumes"] = _inconsistency(
                *(self._column(self._predicted, name) for name in ("EF", "EDV", "ESV"))
            )
        return result

    def _references(self) -> list[tuple[str, np.ndarray]]:
        """Return each measure with its references [N]; NaN for an unknown one."""
        names = dict.fromkeys(name for row in self._true for name in row)
        return [(name, self._column(self._true, name)) for name in names]

    @staticmethod
    def _column(rows: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
        return np.array([row.get(name, np.nan) for row in rows], float)


def categories(ef: np.ndarray) -> np.ndarray:
    """Return the category of each EF in percent, from 0 (below 30) to 3 (50 and above)."""
    return np.digitize(ef, CATEGORIES)


def _inconsistency(ef: np.ndarray, edv: np.ndarray, esv: np.ndarray) -> float:
    """Return the mean difference in percentage points of EF and the EF of the volumes; NaN without complete samples."""
    complete = np.isfinite(ef) & np.isfinite(esv) & (edv > 0)
    differences = np.abs(ef[complete] - 100 * (edv[complete] - esv[complete]) / edv[complete])
    return float(differences.mean()) if len(differences) else float("nan")


def _parts(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the values of each sample, of whose sums `_figures` computes the figures, [N, 7]."""
    known = np.isfinite(true)
    failed = known & ~np.isfinite(predicted)
    predicted, reference = np.where(failed | ~known, 0.0, predicted), np.where(known, true, 0.0)
    error = predicted - reference
    # Centered, to avoid cancellation in the sum of squares.
    centered = reference - (true[known].mean() if known.any() else 0.0)
    same = (categories(predicted) == categories(reference)) & ~failed
    parts = np.stack([np.ones_like(error), np.abs(error), error, error**2, centered, centered**2, same], axis=1)
    return np.where(known[:, None], parts, 0.0)


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return the figures [...] of sums [..., 7]; NaN if there are too few samples."""
    count, absolute, error, squared, true, true_squared, same = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = error / count
        deviation = np.sqrt(np.maximum(squared - count * bias**2, 0) / (count - 1))
        total = true_squared - true**2 / count
        return {
            "mae": absolute / count,
            "rmse": np.sqrt(squared / count),
            "r2": np.where(total > 1e-12 * np.maximum(count, 1), 1 - squared / total, np.nan),
            "bias": bias,
            "loa_lower": bias - NORMAL_95 * deviation,
            "loa_upper": bias + NORMAL_95 * deviation,
            "category_agreement": same / count,
        }
