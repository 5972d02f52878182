"""Metrics of short answers: a stated result, and a choice among a few answers."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from mllm.metrics.base import reads
from mllm.metrics.bootstrap import by_rows
from mllm.metrics.classification import FAILED, Accuracy, ClassAnswers
from mllm.parsing import STATED, normalize, parse_choice, stated_result
from mllm.registry import METRICS

YES_NO = frozenset({"yes", "no"})


@METRICS.register_module(name="short_answer")
@reads("text")
class ShortAnswer(Accuracy):
    """Fraction of answers whose stated result (`The answer is yes.`, `Answer: yes`) is correct.

    A prediction that states several different results is wrong. A prediction that states none is a result if its whole
    text is one of the references, or yes or no where all references are yes or no. A reference without a stated result
    is the result itself.

    Figures: `accuracy`, `majority_class` and `chance` (as in `accuracy`), `failed` (predictions without exactly one
    result) and `samples`. If all references are yes or no, also `precision`, `recall` and `f1` of yes and `yes_share`,
    the fraction of predictions that are yes, as in POPE (arXiv:2305.10355).
    """

    intervals = ("accuracy", "f1")

    def target(self, text: str) -> str:
        """Return the result of a reference."""
        return stated_result(text) or normalize(text)

    def parse(self, text: str) -> str | None:
        """Return the result of a prediction; its whole text if it states none and the text is a possible result."""
        if STATED.search(text):
            return stated_result(text)
        normalized = normalize(text)
        choices: Collection[str] = YES_NO if self._is_binary() else self.classes
        return normalized if normalized in choices else None

    def columns(self, answers: ClassAnswers) -> list[np.ndarray]:
        """Return the values of `accuracy`, and whether reference and answer, the answer, and the reference are yes."""
        columns = super().columns(answers)
        if self._is_binary():
            true = answers.targets == self.classes.numbers_of(["yes"])
            columns += [true & answers.is_yes, answers.is_yes, true]
        return columns

    def _is_binary(self) -> bool:
        """Return True if all references are yes or no."""
        return len(self.classes) <= len(YES_NO) and YES_NO.issuperset(self.classes)

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units."""
        figures = super().figures(weights)
        count, _, *binary = (weights @ column for column in self.table().columns)
        if binary:
            hits, yes, positive = binary
            precision, recall = (_ratio(hits, size) for size in (yes, positive))
            figures |= {"precision": precision, "recall": recall}
            figures["f1"] = _ratio(2 * precision * recall, precision + recall)
            figures["yes_share"] = yes / count
        return figures

    def counts(self) -> dict[str, float]:
        """Return the number of predictions without a result, and of samples."""
        return {"failed": self.table().failed, **super().counts()}


@METRICS.register_module(name="choice")
@reads("choices")
class Choice(Accuracy):
    """Accuracy and F1 of a choice among a few answers (yes, no, maybe): the distinct references.

    Figures: `accuracy`, `majority_class` and `chance` (as in `accuracy`), `macro_f1` (mean over the choices of
    2 tp / (2 tp + fp + fn), as in PubMedQA, arXiv:1909.06146), `unreadable` (answers in which `parse_choice` finds no
    single choice; they are wrong) and `samples`.
    """

    intervals = ("accuracy", "macro_f1")

    def parse(self, text: str) -> str | None:
        """Return the choice that an answer states."""
        return parse_choice(text, self.classes)

    def entries(self, answers: ClassAnswers) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the correct answers, the answers and the samples of each choice."""
        targets, predictions = answers.targets, answers.predictions
        known = np.flatnonzero((predictions != FAILED) & (predictions < len(self.classes)))
        right, all_samples = np.flatnonzero(predictions == targets), np.arange(len(targets))
        return [(right, targets[right]), (known, predictions[known]), (all_samples, targets)]

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units."""
        return super().figures(weights) | by_rows(self._mean_f1, weights, len(self.classes))

    def _mean_f1(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        sums = [counts(weights) for counts in self.table().classes]
        with np.errstate(invalid="ignore"):
            scores = 2 * sums[0] / (sums[1] + sums[2])
        return {"macro_f1": np.nanmean(scores, axis=1)}

    def counts(self) -> dict[str, float]:
        """Return the number of answers without a single choice, and of samples."""
        return {"unreadable": self.table().failed, **super().counts()}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), 0.0)
