"""Metrics of answers with one class each: accuracy and balanced accuracy."""

from __future__ import annotations

from array import array
from typing import ClassVar

import numpy as np

from mllm.metrics.base import CLASSIFICATION, StreamingMetric, computed_once, reads
from mllm.metrics.bootstrap import ClassCounts
from mllm.parsing import LETTERS, normalize, parse_choice, parse_option
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
        self._options = array("q")
        """Number of options of each question; 0: it lists none, or the reference is none of them."""
        self._letters = array("q")
        """Position in `LETTERS` of the letter that is a correct answer to each question; FAILED: no letter is."""
        self._texts: dict[tuple[str | None, bool], int] = {}
        """Text of an answer, or of the option that it names (True), to its number."""
        self._answers = array("q")

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        options = reference.options
        letter = parse_option(reference.text, options) if options else None
        target = self.target(reference.text) if letter is None else normalize(options[letter])
        self._targets.append(self._classes.setdefault(target, len(self._classes)))
        self._options.append(0 if letter is None else len(options))
        correct = letter or target.upper()
        self._letters.append(LETTERS.index(correct) if len(correct) == 1 and correct in LETTERS else FAILED)
        text: str | None = prediction.text
        if letter is not None:
            chosen = parse_option(prediction.text, options)
            text = None if chosen is None else normalize(options[chosen])
        self._answers.append(self._texts.setdefault((text, letter is not None), len(self._texts)))

    @property
    def classes(self) -> list[str]:
        """Return the classes of the references, in the order of their numbers."""
        return list(self._classes)

    @property
    def targets(self) -> np.ndarray:
        """Return the number of the class of each reference, [N]."""
        return np.frombuffer(self._targets, np.int64)

    def __len__(self) -> int:
        return len(self._targets)

    @computed_once
    def predictions(self) -> np.ndarray:
        """Return the number of the class of each answer, [N]; FAILED without one, the number of classes for others."""
        others = len(self._classes)
        numbers = [FAILED if text is None else self._classes.get(text, others) for text in self.stated()]
        return np.array(numbers, int)[np.frombuffer(self._answers, np.int64)]

    @computed_once
    def stated(self) -> list[str | None]:
        """Return the class that each distinct answer states; None for a failed one. An option needs no parsing."""
        return [text if text is None or is_option else self.parse(text) for text, is_option in self._texts]

    def target(self, text: str) -> str:
        """Return the class of a reference to a question without options."""
        return normalize(text)

    def parse(self, text: str) -> str | None:
        """Return the class that an answer to a question without options states, or None."""
        return parse_choice(text, self._classes)

    def possible_answers(self) -> np.ndarray:
        """Return the number of answers among which a guess chooses uniformly, for each sample, [N].

        They are the options of the question. Without options, they are the classes of all samples without options.
        """
        options = np.frombuffer(self._options, np.int64)
        return np.where(options > 0, options, len(np.unique(self.targets[options == 0])))

    def constant_answers(self) -> int:
        """Return the number of samples that the best constant answer, a class or a letter, is correct for."""
        letters = np.frombuffer(self._letters, np.int64)
        return int(max(np.bincount(self.targets).max(), np.bincount(letters[letters != FAILED], minlength=1).max()))

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

    Figures: `accuracy`, `majority_class` (accuracy of the best constant answer, which is a reference, the text of an
    option or a letter), `chance` (expected accuracy of guessing uniformly among the options of each question, or among
    the distinct references to questions without options) and `samples`.
    """

    intervals: ClassVar[tuple[str, ...]] = ("accuracy",)

    def parse(self, text: str) -> str | None:
        """Return the normalized text."""
        return normalize(text)

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        with np.errstate(invalid="ignore"):
            return {"accuracy": weights @ (self.predictions() == self.targets) / weights.sum(axis=1)}

    def counts(self) -> dict[str, float]:
        """Return the accuracy of a constant answer and of guessing, and the number of samples."""
        samples = len(self._targets)
        sizes, counts = np.unique(self.possible_answers(), return_counts=True)
        return {
            "majority_class": self.constant_answers() / samples,
            "chance": float((counts / samples / sizes).sum()),
            "samples": samples,
        }


@METRICS.register_module(name="balanced_accuracy")
@reads("text")
class BalancedAccuracy(ClassMetric):
    """Mean over the classes of the fraction of correct answers, as `balanced_accuracy_score` of scikit-learn.

    A failed answer is wrong: it lowers the recall of its class.

    Figures: `balanced_accuracy`, `chance` (its expectation if answers are guessed as in `accuracy`: 1 / classes for
    questions without options), `classes`, `failed` and `samples`.
    """

    intervals = ("balanced_accuracy",)

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples."""
        totals, correct = (counts(weights) for counts in self.class_counts())
        with np.errstate(invalid="ignore"):
            return {"balanced_accuracy": np.nanmean(correct / totals, axis=1)}

    @computed_once
    def class_counts(self) -> tuple[ClassCounts, ClassCounts]:
        """Return the counts of the samples and of the correct answers of each class."""
        targets, count = self.targets, len(self._classes)
        right = np.flatnonzero(self.predictions() == targets)
        return ClassCounts(np.arange(len(targets)), targets, count), ClassCounts(right, targets[right], count)

    def counts(self) -> dict[str, float]:
        """Return the balanced accuracy of guessing, and the numbers of classes, failed answers and samples."""
        sizes, totals = self.possible_answers(), np.bincount(self.targets)
        chance = 0.0
        for size in np.unique(sizes):
            fractions = np.bincount(self.targets[sizes == size], minlength=len(totals)) / totals
            chance += float(fractions.mean() / size)
        return {"chance": chance, **super().counts()}
