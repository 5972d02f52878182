"""F1 of labels against scikit-learn, and the penalty of failed answers."""

from __future__ import annotations

import numpy as np
import pytest
from scores import score
from sklearn.metrics import f1_score

from mllm.metrics.base import CLASSIFICATION, StreamingMetric
from mllm.metrics.chexpert import ChexpertF1
from mllm.metrics.classification import Accuracy, BalancedAccuracy
from mllm.metrics.labels import F1
from mllm.structures import Answer

LABELS = ["atelectasis", "edema", "mass", "nodule", "pleural effusion"]


def text(row: np.ndarray, separator: str = "; ") -> str:
    return separator.join(label for label, present in zip(LABELS, row, strict=True) if present) or "none"


@pytest.mark.parametrize("separator", ["; ", ", ", " | "])
def test_variants_equal_scikit_learn(separator: str) -> None:
    rng = np.random.default_rng(0)
    true, answers = rng.random((150, 5)) < 0.3, rng.random((150, 5)) < 0.4
    figures = score(F1, [text(row, separator) for row in answers], [text(row, separator) for row in true])
    for variant in ("micro", "macro", "samples"):
        expected = f1_score(true, answers, average=variant, zero_division=1)
        assert figures[f"f1_{variant}"] == pytest.approx(expected, abs=1e-9), variant
    assert figures["exact_match"] == pytest.approx((true == answers).all(axis=1).mean())
    assert (figures["labels"], figures["failed"], figures["samples"]) == (5, 0, 150)


def test_an_answer_that_is_no_list_of_labels_is_failed_and_never_better() -> None:
    """Failed answers miss their labels: the first of micro F1 2 tp / (2 tp + fp + fn) = 2 / (2 + 1 + 1)."""
    answers = ["edema", "The image shows edema and a mass.", "perhaps nothing"]
    figures = score(F1, answers, ["edema", "mass", "none"])
    assert (figures["f1_micro"], figures["f1_samples"], figures["failed"]) == (2 / 4, 1 / 3, 2)
    none = score(F1, ["edema", "none", "none"], ["edema", "mass", "none"])
    assert none["f1_micro"] > figures["f1_micro"] and none["f1_samples"] > figures["f1_samples"]


def test_labels_may_be_options_by_letter_or_text() -> None:
    options = {"A": "caries", "B": "lesion, deep", "C": "crown"}
    references = [Answer("A; B", options=options)] * 4
    figures = score(F1, ["B, A", "caries; lesion, deep", "A: caries; C", "A; D"], references)
    assert (figures["f1_samples"], figures["failed"]) == ((1 + 1 + 0.5 + 0) / 4, 1)


def test_a_class_with_a_comma_is_one_label() -> None:
    references = [Answer(text, task=CLASSIFICATION) for text in ("carcinoma, ductal", "carcinoma, lobular")]
    assert score(F1, ["Carcinoma, ductal.", "carcinoma, ductal"], references)["f1_micro"] == 0.5
    assert score(F1, ["a, b"], ["a, b; c"])["f1_samples"] == pytest.approx(2 / 3), "one of two labels"


@pytest.mark.parametrize("kind", [F1, ChexpertF1, Accuracy, BalancedAccuracy])
def test_figures_include_answers_that_are_added_after_the_first_figures(kind: type[StreamingMetric]) -> None:
    texts = ["edema", "pneumonia", "edema"]
    metric = kind()
    for number, text in enumerate(texts, start=1):
        metric.add(Answer(text), Answer(texts[0]))
        assert metric.counts()["samples"] == number
        expected = kind()
        for earlier in texts[:number]:
            expected.add(Answer(earlier), Answer(texts[0]))
        weights = np.ones((1, number))
        assert metric.figures(weights) == expected.figures(weights)
