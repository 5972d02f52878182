"""Metrics of the probabilities of options: AUROC, AUPRC, sensitivity at a specificity, ECE and Brier score.

The score of an option is its probability among the options of the question, from their likelihoods as answers
(`scoring="options"`). Generated answers have no scores: these metrics need them.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from typing import ClassVar

import numpy as np

from mllm.errors import ConfigError
from mllm.metrics.base import CLASSIFICATION, StreamingMetric, computed_once, reads
from mllm.metrics.bootstrap import ClassCounts
from mllm.parsing import normalize, parse_option
from mllm.registry import METRICS
from mllm.structures import Answer

SPECIFICITIES = (0.9, 0.95)
BINS = 15
"""Number of bins of equal width of the calibration error (Guo et al. 2017, arXiv:1706.04599)."""


class ScoreMetric(StreamingMetric):
    """Base of metrics of the probabilities of options.

    A class is the normalized text of an option. It keeps one number for each option of a sample.
    """

    tasks = frozenset({CLASSIFICATION})
    needs_scores = True

    def __init__(self) -> None:
        self._classes: dict[str, int] = {}
        self._samples = array("q")
        self._options = array("q")
        self._scores = array("d")
        self._targets = array("q")

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the probabilities of the options of one sample.

        Raises:
            ConfigError: The answer was generated, so it has no probabilities.
        """
        if not prediction.scores:
            raise ConfigError(
                "auroc, auprc, sensitivity_at_specificity, ece and brier need the probabilities of options: set "
                "data_args.gen_kwargs.scoring='options'"
            )
        letter = parse_option(reference.text, reference.options) if reference.options else None
        target = normalize(reference.text if letter is None else reference.options[letter])
        self._targets.append(self._class(target))
        for option, score in prediction.scores.items():
            self._samples.append(len(self._targets) - 1)
            self._options.append(self._class(normalize(option)))
            self._scores.append(score)

    def __len__(self) -> int:
        return len(self._targets)

    def _class(self, name: str) -> int:
        return self._classes.setdefault(name, len(self._classes))

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return sample, class and probability of each scored option, [E], and whether it is the reference."""
        samples, options = (np.frombuffer(part, np.int64) for part in (self._samples, self._options))
        targets = np.frombuffer(self._targets, np.int64)
        return samples, options, np.frombuffer(self._scores, float), options == targets[samples]

    def counts(self) -> dict[str, float]:
        """Return the number of classes and of samples."""
        return {"classes": len(self._classes), "samples": len(self._targets)}


class RankMetric(ScoreMetric):
    """Base of metrics of the ranking of samples by the probability of a class, one class against the rest.

    With two classes the figure is that of yes, or of the second class in alphabetical order; with more, it is the mean
    over the classes that have samples with and without them (macro average).
    """

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        rows = [
            self.of_ranking(weights[:, samples], scores, is_target) for _, samples, scores, is_target in self.rankings()
        ]
        if not rows:
            return {}
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        with np.errstate(invalid="ignore"):
            known = {name: np.isfinite(values) for name, values in stacked.items()}
            sums = {name: np.where(known[name], values, 0).sum(axis=0) for name, values in stacked.items()}
            return {name: sums[name] / known[name].sum(axis=0) for name in stacked}

    @computed_once
    def rankings(self) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Return each class with samples, scores and truth of its entries [E]; see `of_ranking`.

        With two classes only the one of the figure.
        """
        samples, options, scores, is_target = self.table()
        names, rankings = sorted(self._classes), []
        for name in ["yes" if "yes" in names else names[-1]] if len(names) == 2 else names:
            entries = np.flatnonzero(options == self._classes[name])
            order = entries[np.argsort(-scores[entries], kind="stable")]
            if len(order):
                rankings.append((name, samples[order], scores[order], is_target[order]))
        return rankings

    @abstractmethod
    def of_ranking(self, weights: np.ndarray, scores: np.ndarray, is_target: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] of one class.

        Args:
            weights: Weights of the samples, [R, E].
            scores: Their probabilities of the class, [E], the largest first.
            is_target: True where the class is the reference, [E].
        """


def curve(weights: np.ndarray, scores: np.ndarray, is_target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of true and of false positives at each threshold, [R, T]; equal scores are one threshold."""
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    return np.cumsum(weights * is_target, axis=1)[:, ends], np.cumsum(weights * ~is_target, axis=1)[:, ends]


@METRICS.register_module(name="auroc")
@reads("text")
class AUROC(RankMetric):
    """Area under the ROC curve, as `roc_auc_score` of scikit-learn; see `RankMetric` for several classes.

    The score is the probability of the class among the options of the question.
    """

    def of_ranking(self, weights: np.ndarray, scores: np.ndarray, is_target: np.ndarray) -> dict[str, np.ndarray]:
        """Return the area by the trapezoidal rule."""
        true, false = (np.pad(part, ((0, 0), (1, 0))) for part in curve(weights, scores, is_target))
        area = (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"auroc": area / (true[:, -1] * false[:, -1])}


@METRICS.register_module(name="auprc")
@reads("text")
class AUPRC(RankMetric):
    """Average precision, as `average_precision_score` of scikit-learn; see `RankMetric` for several classes.

    `auprc_chance` is the fraction of the samples that have the class, the value of a random ranking.
    """

    intervals: ClassVar[tuple[str, ...]] = ("auprc",)

    def of_ranking(self, weights: np.ndarray, scores: np.ndarray, is_target: np.ndarray) -> dict[str, np.ndarray]:
        """Return the sum of precision times the increase of recall."""
        true, false = curve(weights, scores, is_target)
        steps = np.diff(np.pad(true, ((0, 0), (1, 0))), axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(true + false > 0, true / (true + false), 0)
            total = true[:, -1]
            return {"auprc": (steps * precision).sum(axis=1) / total, "auprc_chance": total / weights.sum(axis=1)}


@METRICS.register_module(name="sensitivity_at_specificity")
@reads("text")
class SensitivityAtSpecificity(RankMetric):
    """Largest sensitivity at a specificity of at least 0.9 and 0.95, over the thresholds of the ROC curve."""

    def of_ranking(self, weights: np.ndarray, scores: np.ndarray, is_target: np.ndarray) -> dict[str, np.ndarray]:
        """Return the sensitivities."""
        true, false = (np.pad(part, ((0, 0), (1, 0))) for part in curve(weights, scores, is_target))
        with np.errstate(divide="ignore", invalid="ignore"):
            sensitivity, specificity = true / true[:, -1:], 1 - false / false[:, -1:]
        best = {level: np.where(specificity >= level - 1e-12, sensitivity, 0).max(axis=1) for level in SPECIFICITIES}
        is_known = (true[:, -1] > 0) & (false[:, -1] > 0)
        return {
            f"sensitivity@specificity{level:g}": np.where(is_known, values, np.nan) for level, values in best.items()
        }


@METRICS.register_module(name="ece")
@reads("text")
class ECE(ScoreMetric):
    """Expected calibration error of the most probable option, 0 to 1: 15 bins of equal width (arXiv:1706.04599).

    It is the mean over the samples of |accuracy - mean probability| of their bin.
    """

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        confidence, correct = (counts(weights) for counts in self.bin_counts())
        return {"ece": np.abs(correct - confidence).sum(axis=1) / weights.sum(axis=1)}

    @computed_once
    def bin_counts(self) -> tuple[ClassCounts, ClassCounts]:
        """Return the sums of probabilities and of correct options in each bin."""
        numbers, scores, is_target, bins = self.most_probable()
        return ClassCounts(numbers, bins, BINS, scores), ClassCounts(numbers, bins, BINS, is_target)

    def most_probable(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return sample, probability, truth and bin of the most probable option of each sample, [N]."""
        samples, _, scores, is_target = self.table()
        order = np.lexsort((-scores, samples))
        first = order[np.unique(samples[order], return_index=True)[1]]
        bins = np.clip(np.ceil(scores[first] * BINS).astype(int) - 1, 0, BINS - 1)
        return samples[first], scores[first], is_target[first], bins


@METRICS.register_module(name="brier")
@reads("text")
class Brier(ScoreMetric):
    """Brier score, 0 to 2 (Brier 1950): mean over the samples of the sum over options of (probability - truth)^2.

    For two options it is twice `brier_score_loss` of scikit-learn. A reference that is no option adds 1.
    """

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        return {"brier": weights @ self.squares() / weights.sum(axis=1)}

    @computed_once
    def squares(self) -> np.ndarray:
        """Return the sum of squares of each sample, [N]."""
        samples, _, scores, is_target = self.table()
        count = len(self._targets)
        squares = np.bincount(samples, (scores - is_target) ** 2, count)
        return squares + (np.bincount(samples, is_target, count) == 0)
