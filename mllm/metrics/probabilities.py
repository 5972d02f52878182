"""Metrics of the calibration of the probabilities of options: ECE and Brier score."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from mllm.metrics.base import SumMetric, computed_once, reads
from mllm.metrics.bootstrap import ClassCounts
from mllm.metrics.parts import EntrySums
from mllm.metrics.scores import ScoreMetric
from mllm.registry import METRICS
from mllm.structures import Answer

BINS = 15
"""Number of bins of equal width of the calibration error (Guo et al. 2017, arXiv:1706.04599)."""


@METRICS.register_module(name="ece")
@reads("text")
class ECE(ScoreMetric):
    """Expected calibration error of the most probable option, 0 to 1: 15 bins of equal width (arXiv:1706.04599).

    It is the mean over the samples of |accuracy - mean probability| of their bin.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the probabilities of the options of one sample."""
        options, target = self.read(prediction, reference)
        option, score = max(options, key=lambda pair: pair[1])
        self._values.extend((score, option == target))

    def pending(self) -> int:
        """Return the number of samples that are kept."""
        return len(self._values) // 2

    def kept(self) -> np.ndarray:
        """Return the probability and the truth of the most probable option of the samples that are kept, [N, 2]."""
        return np.array(self._values, float).reshape(-1, 2)

    def forget(self) -> None:
        """Forget the samples that are kept."""
        super().forget()
        self._values = array("d")

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units."""
        samples, confidence, correct = (counts(weights) for counts in self.bin_counts())
        return {"ece": np.abs(correct - confidence).sum(axis=1) / samples.sum(axis=1)}

    @computed_once
    def bin_counts(self) -> list[ClassCounts]:
        """Return the sums of samples, of probabilities and of correct options in each bin."""
        sums = [EntrySums(BINS) for _ in range(3)]
        for units, part in self.parts():
            scores, is_right = part.T
            bins = np.clip(np.ceil(scores * BINS).astype(int) - 1, 0, BINS - 1)
            for own, values in zip(sums, (None, scores, is_right), strict=True):
                own.add(units, bins, values)
        return [own.counts() for own in sums]


@METRICS.register_module(name="brier")
@reads("text")
class Brier(ScoreMetric, SumMetric):
    """Brier score, 0 to 2 (Brier 1950): mean over the samples of the sum over options of (probability - truth)^2.

    For two options it is twice `brier_score_loss` of scikit-learn. A reference that is no option adds 1.
    """

    columns = ("squares", "samples")

    def forget(self) -> None:
        """Forget the samples that are kept."""
        ScoreMetric.forget(self)
        SumMetric.forget(self)

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float]:
        """Return the sum of squares of a sample."""
        options, target = self.read(prediction, reference)
        differences = [score - (option == target) for option, score in options]
        squares = sum(difference * difference for difference in differences)
        return squares + all(option != target for option, _ in options), 1

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the mean."""
        return {"brier": sums["squares"] / sums["samples"]}
