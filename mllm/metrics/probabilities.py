"""Metrics of the probabilities of options: AUROC, AUPRC, sensitivity at a specificity, ECE and Brier score.

The score of an option is its probability among the options of the question, from their likelihoods as answers
(`scoring="options"`). Generated answers have no scores: these metrics need them.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from mllm.errors import ConfigError
from mllm.metrics.base import CLASSIFICATION, PartedMetric, StreamingMetric, SumMetric, computed_once, reads
from mllm.metrics.bootstrap import ClassCounts
from mllm.metrics.parts import EntrySums
from mllm.parsing import normalize, parse_option
from mllm.registry import METRICS
from mllm.structures import Answer

SPECIFICITIES = (0.9, 0.95)
BINS = 15
"""Number of bins of equal width of the calibration error (Guo et al. 2017, arXiv:1706.04599)."""


class ScoreMetric(StreamingMetric):
    """Base of metrics of the probabilities of options. A class is the normalized text of an option."""

    tasks = frozenset({CLASSIFICATION})
    needs_scores = True

    def __init__(self) -> None:
        super().__init__()
        self._classes: dict[str, int] = {}
        self._read = 0
        """Number of samples that were read."""

    def read(self, prediction: Answer, reference: Answer) -> tuple[list[tuple[int, float]], int]:
        """Return the class and probability of each option of a sample, and the class of the reference.

        Raises:
            ConfigError: The answer was generated, so it has no probabilities.
        """
        if not prediction.scores:
            raise ConfigError(
                "auroc, auprc, sensitivity_at_specificity, ece and brier need the probabilities of options: set "
                "data_args.gen_kwargs.scoring='options'"
            )
        self._read += 1
        letter = parse_option(reference.text, reference.options) if reference.options else None
        target = self._class(normalize(reference.text if letter is None else reference.options[letter]))
        return [(self._class(normalize(option)), score) for option, score in prediction.scores.items()], target

    def _class(self, name: str) -> int:
        return self._classes.setdefault(name, len(self._classes))

    def counts(self) -> dict[str, float]:
        """Return the number of classes and of samples."""
        return {"classes": len(self._classes), "samples": self._read}


class RankMetric(ScoreMetric):
    """Base of metrics of the ranking of samples by the probability of a class, one class against the rest.

    With two classes the figure is that of yes, or of the second class in alphabetical order; with more, it is the mean
    over the classes that have samples with and without them (macro average). A ranking needs all probabilities: they
    are kept in memory, 16 bytes each.
    """

    def __init__(self) -> None:
        super().__init__()
        self._samples, self._options, self._targets = (array("i") for _ in range(3))
        self._scores = array("d")

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the probabilities of the options of one sample."""
        options, target = self.read(prediction, reference)
        for option, score in options:
            self._samples.append(len(self._targets))
            self._options.append(option)
            self._scores.append(score)
        self._targets.append(target)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._targets)

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return sample, class and probability of each scored option, [E], and whether it is the reference."""
        samples, options, targets = (np.array(part, np.int32) for part in (self._samples, self._options, self._targets))
        return samples, options, np.array(self._scores, float), options == targets[samples]

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
class ECE(ScoreMetric, PartedMetric):
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

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float]:
        """Return the sum of squares of a sample."""
        options, target = self.read(prediction, reference)
        differences = [score - (option == target) for option, score in options]
        squares = sum(difference * difference for difference in differences)
        return squares + all(option != target for option, _ in options), 1

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the mean."""
        return {"brier": sums["squares"] / sums["samples"]}
