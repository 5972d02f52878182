"""Metrics of measures such as EF and volumes: errors, bias and agreement, with bootstrap intervals.

Errors are prediction minus reference, in the unit of the measure: percentage points for EF, mL for volumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from typing_extensions import override

from mllm.contents import stated_measures
from mllm.metrics.base import PartedMetric, computed_once, reads
from mllm.metrics.numbers import NORMAL_95
from mllm.metrics.parts import ColumnSums
from mllm.registry import METRICS
from mllm.structures import Answer

CATEGORIES = (30.0, 40.0, 50.0)
"""Lower bounds in percent of moderately reduced, mildly reduced and normal EF. Below the first: severely reduced."""
WITH_INTERVAL = ("mae", "rmse", "r2", "bias", "category_agreement")
"""Figures with a 95 % confidence interval."""
PARTS = 7
"""Number of values of a sample, of whose sums the figures are functions."""
Pair = tuple[Mapping[str, float], Mapping[str, float]]
"""Measures of an answer and of its reference."""


@METRICS.register_module(name="measures")
@reads("measures")
class Measures(PartedMetric):
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
        super().__init__()
        self._names: dict[str, None] = {}
        """Measures of the references, in the order in which they were read."""
        self.forget()

    @classmethod
    @override
    def has_interval(cls, figure: str) -> bool:
        """Return True for the figures in `WITH_INTERVAL`."""
        return figure.endswith(tuple(f"_{name}" for name in WITH_INTERVAL))

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the measures of one sample."""
        predicted, true = (answer.measures or stated_measures(answer.text) for answer in (prediction, reference))
        self._pairs.append((dict(predicted), dict(true)))
        self._names |= dict.fromkeys(true)

    def pending(self) -> int:
        """Return the number of samples that are kept."""
        return len(self._pairs)

    def kept(self) -> list[Pair]:
        """Return the measures of the answers and references that are kept."""
        return list(self._pairs)

    def forget(self) -> None:
        """Forget the samples that are kept."""
        self._pairs: list[Pair] = []

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units."""
        result: dict[str, np.ndarray] = {}
        for name, sums in self.sums().items():
            figures = _figures(weights @ sums)
            if name != "EF":
                del figures["category_agreement"]
            result |= {f"{name}_{figure}": value for figure, value in figures.items()}
        return result

    @computed_once
    def sums(self) -> dict[str, np.ndarray]:
        """Return the sums of `_parts` by unit, [U, 7], for each measure."""
        means = {name: total / max(1, known) for name, (known, _, total) in self.known().items()}
        columns = {name: ColumnSums(self.units, PARTS) for name in self._names}
        for units, part in self.parts():
            for name, sums in columns.items():
                sums.add(units, *_parts(*measure_columns(part, name), means[name]).T)
        return {name: np.stack(sums.sums, axis=1) for name, sums in columns.items()}

    @computed_once
    def known(self) -> dict[str, tuple[int, int, float]]:
        """Return for each measure the number of references, of those without a prediction, and their sum."""
        result: dict[str, tuple[int, int, float]] = dict.fromkeys(self._names, (0, 0, 0.0))
        for _, part in self.parts():
            for name, (count, failed, total) in result.items():
                predicted, true = measure_columns(part, name)
                is_known = np.isfinite(true)
                missing = int((is_known & ~np.isfinite(predicted)).sum())
                result[name] = count + int(is_known.sum()), failed + missing, total + float(true[is_known].sum())
        return result

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest of the known references and 0, for each measure."""
        ends = dict.fromkeys(self._names, (0.0, 0.0))
        for _, part in self.parts():
            for name, (low, high) in ends.items():
                true = measure_columns(part, name)[1]
                known = true[np.isfinite(true)]
                if len(known):
                    ends[name] = min(low, float(known.min())), max(high, float(known.max()))
        return ends

    def columns(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield the name of each measure, and its values in answers and references, [N] each; NaN: unknown."""
        for name in self._names:
            columns = zip(*(measure_columns(part, name) for _, part in self.parts()), strict=True)
            predicted, true = (np.concatenate(column) for column in columns)
            yield name, predicted, true

    def counts(self) -> dict[str, float]:
        """Return the numbers of known, unknown and failed measures, and the difference of EF and volumes."""
        result: dict[str, float] = {}
        for name, (known, failed, _) in self.known().items():
            result |= {f"{name}_samples": known, f"{name}_unknown": len(self) - known, f"{name}_failed": failed}
        if {"EF", "EDV", "ESV"} <= self._names.keys():
            result["EF_against_volumes"] = self._inconsistency()
        return result

    def _inconsistency(self) -> float:
        """Return the mean difference in percentage points of EF and the EF of the volumes; NaN without full samples."""
        total, count = 0.0, 0
        for _, part in self.parts():
            ef, edv, esv = (measure_columns(part, name)[0] for name in ("EF", "EDV", "ESV"))
            complete = np.isfinite(ef) & np.isfinite(esv) & (edv > 0)
            differences = np.abs(ef[complete] - 100 * (edv[complete] - esv[complete]) / edv[complete])
            total, count = total + float(differences.sum()), count + len(differences)
        return total / count if count else float("nan")


def measure_columns(part: Sequence[Pair], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a measure in answers and references, [N] each; NaN for an unknown one."""
    values = np.array([[side.get(name, np.nan) for side in pair] for pair in part], float).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def categories(ef: np.ndarray) -> np.ndarray:
    """Return the category of each EF in percent, from 0 (below 30) to 3 (50 and above)."""
    return np.digitize(ef, CATEGORIES)


def _parts(predicted: np.ndarray, true: np.ndarray, mean: float) -> np.ndarray:
    """Return the values of each sample, of whose sums `_figures` computes the figures, [N, 7].

    Args:
        predicted: Predicted values, [N].
        true: References, [N].
        mean: Mean of the known references, around which they are centered to avoid cancellation in the sum of squares.
    """
    known = np.isfinite(true)
    failed = known & ~np.isfinite(predicted)
    predicted, reference = np.where(failed | ~known, 0.0, predicted), np.where(known, true, 0.0)
    error = predicted - reference
    centered = reference - mean
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
