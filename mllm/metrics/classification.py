"""Metrics of answers with one class each: accuracy and balanced accuracy."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mllm.metrics.base import CLASSIFICATION, PartedMetric, computed_once, reads
from mllm.metrics.bootstrap import ClassCounts, by_rows
from mllm.metrics.distinct import DistinctTexts
from mllm.metrics.parts import ColumnSums, EntrySums
from mllm.parsing import LETTERS, normalize, parse_choice, parse_option
from mllm.registry import METRICS
from mllm.structures import Answer

FAILED = -1
"""Class of an answer that cannot be read."""


@dataclass(frozen=True)
class ClassPart:
    """Values of the answers of a part, [N] each."""

    targets: np.ndarray
    """Hash of the class of each reference."""
    options: np.ndarray
    """Number of options of each question; 0: it lists none, or the reference is none of them."""
    letters: np.ndarray
    """Position in `LETTERS` of the letter that is a correct answer to each question; FAILED: no letter is."""
    answers: np.ndarray
    """Number of the text of each answer."""
    texts: list[tuple[str | None, bool]]
    """Texts of answers, or of the options that they name (True); None: an answer names no single option."""


@dataclass(frozen=True)
class ClassAnswers:
    """Classes of the answers of a part."""

    targets: np.ndarray
    """Number of the class of each reference, [N]."""
    predictions: np.ndarray
    """Number of the class of each answer, [N]; FAILED without one, the number of classes for others."""
    is_yes: np.ndarray
    """True for each answer that states yes, [N]."""


@dataclass(frozen=True)
class ClassTable:
    """Sums of all answers."""

    columns: list[np.ndarray]
    """Sums of `ClassMetric.columns` by unit, [U] each."""
    classes: list[ClassCounts]
    """Sums of `ClassMetric.entries` by class."""
    targets: dict[int, np.ndarray]
    """Number of options of a question (0: none) -> number of samples of each class, [C]."""
    letters: np.ndarray
    """Number of samples for which each letter is correct."""
    failed: int
    """Number of answers without a class."""


class ClassMetric(PartedMetric):
    """Base of metrics of the class that an answer states.

    The class of a sample is the text of an option if the question lists options (`A: normal B: edema`), and the
    reference otherwise; both are normalized. An answer that states no single class is failed, which is never correct.
    Different classes take 16 bytes each.
    """

    tasks = frozenset({CLASSIFICATION})

    def __init__(self) -> None:
        super().__init__()
        self.classes = DistinctTexts()
        """Classes of the references."""
        self.forget()

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        options = reference.options
        letter = parse_option(reference.text, options) if options else None
        target = self.target(reference.text) if letter is None else normalize(options[letter])
        self._targets.append(self.classes.add(target))
        self._options.append(0 if letter is None else len(options))
        correct = letter or target.upper()
        self._letters.append(LETTERS.index(correct) if len(correct) == 1 and correct in LETTERS else FAILED)
        text: str | None = prediction.text
        if letter is not None:
            chosen = parse_option(prediction.text, options)
            text = None if chosen is None else normalize(options[chosen])
        self._answers.append(self._texts.setdefault((text, letter is not None), len(self._texts)))

    def pending(self) -> int:
        """Return the number of answers that are kept."""
        return len(self._targets)

    def kept(self) -> ClassPart:
        """Return the values of the answers that are kept."""
        options, letters, answers = (
            np.array(values, np.int64) for values in (self._options, self._letters, self._answers)
        )
        return ClassPart(np.array(self._targets, np.uint64), options, letters, answers, list(self._texts))

    def forget(self) -> None:
        """Forget the answers that are kept."""
        self._targets = array("Q")
        self._options, self._letters, self._answers = (array("q") for _ in range(3))
        self._texts: dict[tuple[str | None, bool], int] = {}

    def read(self, part: ClassPart) -> ClassAnswers:
        """Return the classes of the answers of a part. An option needs no parsing."""
        stated = [text if text is None or is_option else self.parse(text) for text, is_option in part.texts]
        is_failed = np.array([text is None for text in stated], bool)
        numbers = np.where(is_failed, FAILED, self.classes.numbers_of([text or "" for text in stated]))
        is_yes = np.array([text == "yes" for text in stated], bool)
        targets = self.classes.numbers(part.targets)
        return ClassAnswers(targets, numbers[part.answers], is_yes[part.answers])

    def columns(self, answers: ClassAnswers) -> list[np.ndarray]:
        """Return the values [N] whose sums a metric needs: 1, whether an answer is correct, and others."""
        return [np.ones(len(answers.targets)), answers.predictions == answers.targets]

    def entries(self, answers: ClassAnswers) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the positions and classes of answers whose numbers by class a metric needs."""
        return []

    @computed_once
    def table(self) -> ClassTable:
        """Return the sums of all answers."""
        count = len(self.classes)
        columns: ColumnSums | None = None
        entries: list[EntrySums] = []
        targets: dict[int, np.ndarray] = {}
        letters, failed = np.zeros(len(LETTERS), int), 0
        for units, part in self.parts():
            answers = self.read(part)
            values, numbered = self.columns(answers), self.entries(answers)
            if columns is None:
                columns, entries = ColumnSums(self.units, len(values)), [EntrySums(count) for _ in numbered]
            columns.add(units, *values)
            for sums, (positions, classes) in zip(entries, numbered, strict=True):
                sums.add(units[positions], classes)
            for size in np.unique(part.options).tolist():
                np.add.at(targets.setdefault(size, np.zeros(count, int)), answers.targets[part.options == size], 1)
            letters += np.bincount(part.letters[part.letters != FAILED], minlength=len(LETTERS))
            failed += int((answers.predictions == FAILED).sum())
        assert columns is not None
        return ClassTable(columns.sums, [sums.counts() for sums in entries], targets, letters, failed)

    def accuracy(self, weights: np.ndarray) -> np.ndarray:
        """Return the fraction of correct answers [R] for the weights [R, U] of the units."""
        count, correct = self.table().columns[:2]
        with np.errstate(invalid="ignore"):
            return np.asarray(weights @ correct / (weights @ count))

    def target(self, text: str) -> str:
        """Return the class of a reference to a question without options."""
        return normalize(text)

    def parse(self, text: str) -> str | None:
        """Return the class that an answer to a question without options states, or None."""
        return parse_choice(text, self.classes)

    def possible_answers(self) -> dict[int, np.ndarray]:
        """Return number of answers among which a guess chooses uniformly -> number of samples of each class, [C].

        The answers are the options of the question. Without options, they are the classes of all samples without
        options.
        """
        guesses: dict[int, np.ndarray] = {}
        for options, targets in self.table().targets.items():
            size = options or int((targets > 0).sum())
            guesses[size] = guesses.get(size, 0) + targets
        return dict(sorted(guesses.items()))

    def constant_answers(self) -> int:
        """Return the number of samples that the best constant answer, a class or a letter, is correct for."""
        return int(max(np.sum([*self.table().targets.values()], axis=0).max(), self.table().letters.max()))

    def counts(self) -> dict[str, float]:
        """Return the number of classes, of answers without a class, and of samples."""
        return {"classes": len(self.classes), "failed": self.table().failed, "samples": len(self)}


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
        """Return the figures [R] for the weights [R, U] of the units."""
        return {"accuracy": self.accuracy(weights)}

    def counts(self) -> dict[str, float]:
        """Return the accuracy of a constant answer and of guessing, and the number of samples."""
        samples, guesses = len(self), self.possible_answers()
        counts = np.array([targets.sum() for targets in guesses.values()])
        return {
            "majority_class": self.constant_answers() / samples,
            "chance": float((counts / samples / np.array([*guesses])).sum()),
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

    def entries(self, answers: ClassAnswers) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the samples, and the correct answers, with their classes."""
        right = np.flatnonzero(answers.predictions == answers.targets)
        return [(np.arange(len(answers.targets)), answers.targets), (right, answers.targets[right])]

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units."""
        return by_rows(self._mean_recall, weights, len(self.classes))

    def _mean_recall(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        totals, correct = (counts(weights) for counts in self.table().classes)
        with np.errstate(invalid="ignore"):
            return {"balanced_accuracy": np.nanmean(correct / totals, axis=1)}

    def counts(self) -> dict[str, float]:
        """Return the balanced accuracy of guessing, and the numbers of classes, failed answers and samples."""
        guesses = self.possible_answers()
        totals, chance = sum(guesses.values()), 0.0
        for size, targets in guesses.items():
            chance += float((targets / totals).mean() / size)
        return {"chance": chance, **super().counts()}
