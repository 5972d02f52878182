"""Accuracy and balanced accuracy against scikit-learn, and options of questions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scores import score
from sklearn import metrics as sklearn_metrics

from mllm.metrics.classification import Accuracy, BalancedAccuracy
from mllm.metrics.scoring import Series
from mllm.metrics.text import Choice, ShortAnswer
from mllm.structures import Answer

NAMES = ["normal", "benign", "malignant"]


def test_figures_equal_scikit_learn_and_failures_are_wrong() -> None:
    rng = np.random.default_rng(0)
    true, answers = ([NAMES[i] for i in rng.integers(0, 3, 200)] for _ in range(2))
    answers = [answer if rng.random() > 0.2 else "I cannot tell" for answer in answers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class of answers that no reference has
        expected = sklearn_metrics.balanced_accuracy_score(true, answers)
    figures = score(BalancedAccuracy, answers, true)
    assert figures["balanced_accuracy"] == pytest.approx(expected, abs=1e-9)
    assert figures["failed"] == answers.count("I cannot tell")
    assert (figures["chance"], figures["classes"], figures["samples"]) == (1 / 3, 3, 200)
    assert score(Accuracy, answers, true)["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(true, answers))


def test_figures_of_a_bootstrap_sample_equal_those_of_the_repeated_samples() -> None:
    rng = np.random.default_rng(3)
    true, answers = ([NAMES[i] for i in rng.integers(0, 3, 40)] for _ in range(2))
    weights = rng.integers(0, 3, (1, 40))
    for entry in (Accuracy, BalancedAccuracy):
        series, repeated = Series(entry), Series(entry)
        for i, (answer, reference) in enumerate(zip(answers, true, strict=True)):
            series.add(Answer(answer), Answer(reference))
            for _ in range(weights[0, i]):
                repeated.add(Answer(answer), Answer(reference))
        expected = repeated.metric.figures(np.ones((1, int(weights.sum()))))
        for name, values in series.metric.figures(weights.astype(float)).items():
            assert values == pytest.approx(expected[name])


def test_options_are_compared_by_their_text() -> None:
    """Letters of two questions with other options are other classes."""
    first, second = {"A": "normal", "B": "edema"}, {"A": "edema", "B": "normal"}
    references = [Answer("B", options=first), Answer("A", options=second), Answer("A", options=first)]
    figures = score(BalancedAccuracy, ["B: edema", "edema", "(B)"], references)
    assert (figures["balanced_accuracy"], figures["classes"], figures["failed"]) == (0.5, 2, 0)
    assert score(Accuracy, ["b", "A.", "A. edema"], references)["accuracy"] == 2 / 3


def test_an_option_that_no_reference_has_is_wrong_but_readable() -> None:
    """`yes, with contrast` is a class of its own, although its first clause is the class of another sample."""
    options = {"A": "edema", "B": "nodule", "C": "yes, with contrast"}
    answers = [("B", options), ("C", options), ("A", options), ("yes", {})]
    for entry, unread in ((BalancedAccuracy, "failed"), (ShortAnswer, "failed"), (Choice, "unreadable")):
        series = Series(entry)
        for text, listed in answers:
            series.add(Answer(text), Answer("A" if listed else "yes", options=listed))
        figures = series.result()
        assert figures[unread] == 0
        assert figures.get("accuracy", 0.5) == 0.5 and figures.get("balanced_accuracy", 2 / 3) == pytest.approx(2 / 3)
        assert figures.get("macro_f1", 0.75) == 0.75


def test_chance_and_majority_class_of_questions_with_options_of_their_own() -> None:
    """Guessing scores (1/2 + 1/3 + 1/4 + 1/4) / 4 = 1/3; always A scores 3 of 4, and no text is right twice."""
    lists = [("A", "rest ice"), ("B", "oak elm ash"), ("A", "red blue pink gray"), ("A", "one two three four")]
    references = [_asked(letter, texts.split()) for letter, texts in lists]
    figures = score(Accuracy, ["A"] * 4, references)
    assert (figures["chance"], figures["majority_class"]) == (pytest.approx(1 / 3), 3 / 4)
    assert figures["accuracy"] == figures["majority_class"], "it is the score of a constant answer"


def test_the_majority_class_of_shuffled_options_is_a_text() -> None:
    """The letters are A, B, A and B, and the answer is edema three times."""
    lists = [("A", "edema mass"), ("B", "mass edema"), ("A", "mass edema"), ("B", "mass edema")]
    references = [_asked(letter, texts.split()) for letter, texts in lists]
    figures = score(Accuracy, ["edema"] * 4, references)
    assert (figures["chance"], figures["majority_class"], figures["accuracy"]) == (1 / 2, 3 / 4, 3 / 4)


def test_questions_with_and_without_options_share_their_baselines() -> None:
    """Chance is 1/4 for two and 1/3 for three of five; `A` is right for two with options and one without."""
    listed = [_asked("A", list("wxyz")), _asked("A", list("pqrs"))]
    references = [*listed, Answer("a"), Answer("b"), Answer("c")]
    figures = score(Accuracy, ["A"] * 5, references)
    assert figures["chance"] == pytest.approx((2 / 4 + 3 / 3) / 5)
    assert figures["majority_class"] == figures["accuracy"] == 3 / 5


def test_the_chance_of_balanced_accuracy_weighs_classes_equally() -> None:
    """Edema has two and four options, a mean of 3/8; mass has two. The mean of the classes is 7/16."""
    lists = [("A", "edema mass"), ("B", "mass edema cyst node"), ("A", "mass edema")]
    references = [_asked(letter, texts.split()) for letter, texts in lists]
    assert score(BalancedAccuracy, ["A"] * 3, references)["chance"] == pytest.approx(7 / 16)


def _asked(letter: str, texts: list[str]) -> Answer:
    return Answer(letter, options=dict(zip("ABCD", texts, strict=False)))
