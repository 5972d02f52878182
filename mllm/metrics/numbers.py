"""Metrics of answers that are a number: errors, R2 and limits of agreement."""

from __future__ import annotations

from array import array
from typing import ClassVar

import numpy as np

from mllm.metrics.base import COUNTING, REGRESSION, StreamingMetric, reads
from mllm.parsing import number_and_unit, parse_number
from mllm.registry import METRICS
from mllm.structures import Answer

PLAUSIBLE = 10.0
"""A number this many ranges of the references and 0 away from them is failed, such as a run-on of digits."""
NORMAL_95 = 1.96
"""95 % of a normal distribution are within this many standard deviations of the mean (Bland and Altman 1986)."""


class NumberMetric(StreamingMetric):
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
        self._values = array("d")

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        true = number_and_unit(reference.text)
        value = None if true is None else parse_number(prediction.text, true[1])
        self._values.extend(float("nan") if number is None else number for number in (value, true and true[0]))

    def numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return answers [N] with the penalty, references [N] (NaN: unreadable), and which answers are failed [N]."""
        answers, references = np.frombuffer(self._values, float).reshape(-1, 2).T
        known = references[np.isfinite(references)]
        if not len(known):
            return answers, references, np.zeros(len(answers), bool)
        low, high = min(known.min(), 0.0), max(known.max(), 0.0)
        if low == high:
            high = 1.0
        margin = PLAUSIBLE * (high - low)
        failed = ~((answers >= low - margin) & (answers <= high + margin)) & np.isfinite(references)
        penalty = np.where(references - low > high - references, low, high)
        return np.where(failed, penalty, answers), references, failed

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        answers, references, _ = self.numbers()
        known = np.isfinite(references)
        w, y = weights[:, known], references[known]
        error, count = answers[known] - y, w.sum(axis=1)
        centered = y - (y.mean() if len(y) else 0.0)  # avoids cancellation in the sum of squares
        with np.errstate(divide="ignore", invalid="ignore"):
            squared, bias = w @ error**2, w @ error / count
            variation = w @ centered**2 - (w @ centered) ** 2 / count
            deviation = np.sqrt(np.maximum(squared - count * bias**2, 0) / (count - 1))
            figures = {
                "mae": w @ np.abs(error) / count,
                "rmse": np.sqrt(squared / count),
                "r2": np.where(variation > 1e-12 * count, 1 - squared / variation, np.nan),
                "bias": bias,
                "loa_lower": bias - NORMAL_95 * deviation,
                "loa_upper": bias + NORMAL_95 * deviation,
            }
        return {name: figures[name] for name in self.names}

    def counts(self) -> dict[str, float]:
        """Return the number of failed answers, of references that are not numbers, and of scored samples."""
        _, references, failed = self.numbers()
        known = np.isfinite(references)
        return {"failed": int(failed.sum()), "unreadable_references": int((~known).sum()), "samples": int(known.sum())}


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
