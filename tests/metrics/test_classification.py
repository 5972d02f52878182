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
