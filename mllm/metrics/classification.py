"""Metrics of answers with one class each: accuracy and balanced accuracy."""

from __future__ import annotations

from array import array
from typing import ClassVar

import numpy as np

from mllm.metrics.base import CLASSIFICATION, StreamingMetric, reads
from mllm.metrics.bootstrap import weighted_counts
from mllm.parsing import normalize, parse_choice, parse_option
from mllm.registry import METRICS
from mllm.structures import Answer

FAILED = -1
"""Class of an answer that cannot be read."""


class ClassMetric(StreamingMetric):
    """Base of metrics of the class that an answer states.

    The class of a sample is the text of an option if the question lists options (`A: normal B: edema`), and the
    reference otherwise; both are normalized. An answer that states no single class is failed, which is never correct.
    """

    tasks = frozenset({CLASSIFICATION})

    def __init__(self) -> None:
        self._classes: dict[str, int] = {}
        self._targets = array("q")
        self._texts: dict[tuple[str | None, bool], int] = {}
        """Text of an answer, or of the option that it names (True), to its number."""
        self._answers = array("q")
        self._stated: list[str | None] | None = None

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        options = reference.options
        letter = parse_option(reference.text, options) if options else None
        target = self.target(reference.text) if letter is None else normalize(options[letter])
        self._targets.append(self._classes.setdefault(target, len(self._classes)))
        text: str | None = prediction.text
        if letter is not None:
            chosen = parse_option(prediction.text, options)
            text = None if chosen is None else normalize(options[chosen])
        self._answers.append(self._texts.setdefault((text, letter is not None), len(self._texts)))
        self._stated = None

    @property
    def classes(self) -> list[str]:
        """Return the classes of the references, in the order of their numbers."""
        return list(self._classes)

    @property
    def targets(self) -> np.ndarray:
        """Return the number of the class of each reference, [N]."""
        return np.frombuffer(self._targets, np.int64)

    def predictions(self) -> np.ndarray:
        """Return the number of the class of each answer, [N]; FAILED without one, the number of classes for others."""
        others = len(self._classes)
        numbers = [FAILED if text is None else self._classes.get(text, others) for text in self.stated()]
        return np.array(numbers, int)[np.frombuffer(self._answers, np.int64)]

    def stated(self) -> list[str | None]:
        """Return the class that each distinct answer states; None for a failed one. An option needs no parsing."""
        if self._stated is None:
            self._stated = [text if text is None or is_option else self.parse(text) for text, is_option in self._texts]
        return self._stated

    def target(self, text: str) -> str:
        """Return the class of a reference to a question without options."""
        return normalize(text)

    def parse(self, text: str) -> str | None:
        """Return the class that an answer to a question without options states, or None."""
        return parse_choice(text, self._classes)

    def counts(self) -> dict[str, float]:
        """Return the number of classes, of answers without a class, and of samples."""
        failed = int((self.predictions() == FAILED).sum())
        return {"classes": len(self._classes), "failed": failed, "samples": len(self._targets)}


@METRICS.register_module(name="accuracy")
@reads("text")
class Accuracy(ClassMetric):
    """Fraction of answers that equal their reference, except for case, spaces and final punctuation.

    An answer that contains its reference and more text is wrong. If the question lists options, an answer may be the
    letter of an option, its text, or both; see `mllm.parsing.parse_option`.

    Figures: `accuracy`, `majority_class` (accuracy of always giving the most frequent reference), `chance` (accuracy of
    guessing uniformly among the distinct references) and `samples`.
    """

    intervals: ClassVar[tuple[str, ...]] = ("accuracy",)

    def parse(self, text: str) -> str | None:
        """Return the normalized text."""
        return normalize(text)

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        total = weights.sum(axis=1)
        counts = weighted_counts(weights, np.arange(len(self.targets)), self.targets, len(self._classes))
        with np.errstate(invalid="ignore"):
            return {
                "accuracy": weights @ (self.predictions() == self.targets) / total,
                "majority_class": counts.max(axis=1) / total,
                "chance": 1 / (counts > 0).sum(axis=1),
            }

    def counts(self) -> dict[str, float]:
        """Return the number of samples."""
        return {"samples": len(self._targets)}


@METRICS.register_module(name="balanced_accuracy")
@reads("text")
class BalancedAccuracy(ClassMetric):
    """Mean over the classes of the fraction of correct answers, as `balanced_accuracy_score` of scikit-learn.

    A failed answer is wrong: it lowers the recall of its class.

    Figures: `balanced_accuracy`, `chance` (that of guessing uniformly: 1 / classes), `classes`, `failed` and `samples`.
    """

    intervals = ("balanced_accuracy",)

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        targets, count = self.targets, len(self._classes)
        right = np.flatnonzero(self.predictions() == targets)
        totals = weighted_counts(weights, np.arange(len(targets)), targets, count)
        correct = weighted_counts(weights, right, targets[right], count)
        with np.errstate(invalid="ignore"):
            return {
                "balanced_accuracy": np.nanmean(correct / totals, axis=1),
                "chance": 1 / (totals > 0).sum(axis=1),
            }
