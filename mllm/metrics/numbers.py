"""Metrics of answers that are a number: errors, R2 and limits of agreement."""

from __future__ import annotations

from array import array
from typing import ClassVar

import numpy as np

from mllm.metrics.base import COUNTING, REGRESSION, PartedMetric, computed_once, reads
from mllm.metrics.parts import ColumnSums
from mllm.parsing import number_and_unit, parse_number
from mllm.registry import METRICS
from mllm.structures import Answer

PLAUSIBLE = 10.0
"""A number this many ranges of the references and 0 away from them is failed, such as a run-on of digits."""
NORMAL_95 = 1.96
"""95 % of a normal distribution are within this many standard deviations of the mean (Bland and Altman 1986)."""


class NumberMetric(PartedMetric):
    """Base of metrics of numbers, in the unit of the references.

    An answer must be a number, alone or as a stated result, without a unit or with that of its reference; see
    `mllm.parsing.parse_number`. Anything else is failed, and so is a number that is more than ten ranges of the
    references and 0 (largest minus smallest) outside of these. A failed answer counts as the smallest or the largest
    of the references of the split and 0, whichever is farther from its own reference, so that it is never better than
    a number in this range. If all references are 0, it counts as 1.

    Figures: those of the class, `failed`, `unreadable_references` (not scored) and `samples`.
    """

    tasks = frozenset({COUNTING, REGRESSION})
    names: ClassVar[tuple[str, ...]]
    """Names of the figures."""

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        true = number_and_unit(reference.text)
        value = None if true is None else parse_number(prediction.text, true[1])
        self._values.extend(float("nan") if number is None else number for number in (value, true and true[0]))

    def pending(self) -> int:
        """Return the number of answers that are kept."""
        return len(self._values) // 2

    def kept(self) -> np.ndarray:
        """Return the answers and references that are kept, [2, N]; NaN: failed, unreadable."""
        return np.array(self._values, float).reshape(-1, 2).T

    def forget(self) -> None:
        """Forget the answers that are kept."""
        self._values = array("d")

    @computed_once
    def references(self) -> tuple[float, float, float, int]:
        """Return the smallest and largest of the references and 0, their mean, and the number of references."""
        low, high, total, count = 0.0, 0.0, 0.0, 0
        for _, (_, references) in self.parts():
            known = references[np.isfinite(references)]
            if len(known):
                low, high = min(float(known.min()), low), max(float(known.max()), high)
                total, count = total + float(known.sum()), count + len(known)
        return low, (1.0 if low == high else high), total / max(1, count), count

    def read(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return answers with their penalty, references (NaN: unreadable), and which answers are failed.

        Args:
            part: Answers and references, [2, N].

        Returns:
            [N] each.
        """
        answers, references = part
        low, high, _, _ = self.references()
        margin = PLAUSIBLE * (high - low)
        failed = ~((answers >= low - margin) & (answers <= high + margin)) & np.isfinite(references)
        penalty = np.where(references - low > high - references, low, high)
        return np.where(failed, penalty, answers), references, failed

    @computed_once
    def sums(self) -> tuple[list[np.ndarray], int]:
        """Return sums by unit [U] of 1, |error|, error, error^2, reference and reference^2, and the failed answers.

        References are centered, which avoids cancellation in the sum of squares.
        """
        columns, failed_answers = ColumnSums(self.units, 6), 0
        mean = self.references()[2]
        for units, part in self.parts():
            answers, references, failed = self.read(part)
            known = np.isfinite(references)
            error, centered = answers[known] - references[known], references[known] - mean
            values = np.ones(len(error)), np.abs(error), error, error**2, centered, centered**2
            columns.add(units[known], *values)
            failed_answers += int(failed.sum())
        return columns.sums, failed_answers

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units."""
        count, absolute, errors, squared, true, true_squared = (weights @ column for column in self.sums()[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            bias = errors / count
            variation = true_squared - true**2 / count
            deviation = np.sqrt(np.maximum(squared - count * bias**2, 0) / (count - 1))
            figures = {
                "mae": absolute / count,
                "rmse": np.sqrt(squared / count),
                "r2": np.where(variation > 1e-12 * count, 1 - squared / variation, np.nan),
                "bias": bias,
                "loa_lower": bias - NORMAL_95 * deviation,
                "loa_upper": bias + NORMAL_95 * deviation,
            }
        return {name: figures[name] for name in self.names}

    def counts(self) -> dict[str, float]:
        """Return the number of failed answers, of references that are not numbers, and of scored samples."""
        known = self.references()[3]
        return {"failed": self.sums()[1], "unreadable_references": len(self) - known, "samples": known}


@METRICS.register_module(name="mae")
@reads("number")
class MAE(NumberMetric):
    """Mean absolute error of numbers; see `NumberMetric` for the penalty of answers that are not numbers."""

    names = ("mae",)


@METRICS.register_module(name="rmse")
@reads("number")
class RMSE(NumberMetric):
    """Root mean squared error of numbers; see `NumberMetric` for the penalty of answers that are not numbers."""

    names = ("rmse",)


@METRICS.register_module(name="r2")
@reads("number")
class R2(NumberMetric):
    """Coefficient of determination of numbers, as `r2_score` of scikit-learn; NaN if all references are equal."""

    names = ("r2",)


@METRICS.register_module(name="limits_of_agreement")
@reads("number")
class LimitsOfAgreement(NumberMetric):
    """Mean error and limits of agreement: bias -/+ 1.96 standard deviations (ddof 1) of the errors.

    Errors are answer minus reference (Bland and Altman 1986, doi:10.1016/S0140-6736(86)90837-8).
    """

    names = ("bias", "loa_lower", "loa_upper")
