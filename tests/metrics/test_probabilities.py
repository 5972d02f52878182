"""Metrics of the probabilities of options against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scores import score
from sklearn import metrics as sklearn_metrics

from mllm.errors import ConfigError
from mllm.metrics.probabilities import ECE, Brier
from mllm.metrics.rankings import AUPRC, AUROC, SensitivityAtSpecificity
from mllm.metrics.scoring import Series
from mllm.structures import Answer

NAMES = ["benign", "malignant", "normal"]


def binary(rng: np.random.Generator) -> tuple[list[Answer], list[str], np.ndarray, np.ndarray]:
    """Return answers and references of yes and no, probabilities of yes with ties, and the truth."""
    probabilities = np.round(rng.random(80), 1)
    truth = rng.random(80) < probabilities
    answers = [Answer("", scores={"yes": p, "no": 1 - p}) for p in probabilities]
    return answers, ["yes" if value else "No." for value in truth], probabilities, truth


def test_two_options() -> None:
    answers, references, probabilities, truth = binary(np.random.default_rng(0))
    assert score(AUROC, answers, references)["auroc"] == pytest.approx(
        sklearn_metrics.roc_auc_score(truth, probabilities), abs=1e-9
    )
    figures = score(AUPRC, answers, references)
    assert figures["auprc"] == pytest.approx(sklearn_metrics.average_precision_score(truth, probabilities), abs=1e-9)
    assert figures["auprc_chance"] == pytest.approx(truth.mean())
    fpr, tpr, _ = sklearn_metrics.roc_curve(truth, probabilities, drop_intermediate=False)
    figures = score(SensitivityAtSpecificity, answers, references)
    for level in (0.9, 0.95):
        assert figures[f"sensitivity@specificity{level}"] == pytest.approx(tpr[1 - fpr >= level - 1e-12].max())
    expected = 2 * sklearn_metrics.brier_score_loss(truth, probabilities)
    assert score(Brier, answers, references)["brier"] == pytest.approx(expected)


def test_several_options_are_averaged_one_against_the_rest() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet([1, 1, 1], 90)
    truth = np.array([rng.choice(3, p=row) for row in probabilities])
    answers = [Answer("", scores=dict(zip(NAMES, row, strict=True))) for row in probabilities]
    references = [NAMES[i] for i in truth]
    expected = sklearn_metrics.roc_auc_score(truth, probabilities, multi_class="ovr")
    assert score(AUROC, answers, references)["auroc"] == pytest.approx(expected, abs=1e-9)
    expected = sklearn_metrics.average_precision_score(np.eye(3)[truth], probabilities)
    assert score(AUPRC, answers, references)["auprc"] == pytest.approx(expected, abs=1e-9)
    expected = np.mean(((probabilities - np.eye(3)[truth]) ** 2).sum(axis=1))
    assert score(Brier, answers, references)["brier"] == pytest.approx(expected)


def test_weights_are_those_of_scikit_learn() -> None:
    answers, references, probabilities, truth = binary(np.random.default_rng(2))
    weights = np.random.default_rng(3).integers(0, 4, (1, 80)).astype(float)
    functions = {AUROC: sklearn_metrics.roc_auc_score, AUPRC: sklearn_metrics.average_precision_score}
    for entry, function in functions.items():
        metric = entry()
        for answer, reference in zip(answers, references, strict=True):
            metric.add(answer, Answer(reference))
        value = next(iter(metric.figures(weights).values()))
        assert value == pytest.approx([function(truth, probabilities, sample_weight=weights[0])], abs=1e-9)


def test_calibration_error_of_two_bins() -> None:
    """Ten answers at 0.95 of which 8 are right, and ten at 0.55 of which 5 are: (0.15 + 0.05) / 2."""
    answers = [Answer("", scores={"a": p, "b": 1 - p}) for p in [0.95] * 10 + [0.55] * 10]
    references = ["a"] * 8 + ["b"] * 2 + ["a"] * 5 + ["b"] * 5
    assert score(ECE, answers, references)["ece"] == pytest.approx(0.1)


def test_generated_answers_have_no_probabilities() -> None:
    with pytest.raises(ConfigError, match="need the probabilities of options: set data_args.gen_kwargs.scoring"):
        score(AUROC, ["yes"], ["no"])


@pytest.mark.parametrize(("few", "cells", "block", "together"), [(7, 9, 5, 12), (40, 64, 8, 1), (1000, 500, 11, 60)])
def test_rankings_in_blocks_are_those_of_scikit_learn(
    few: int, cells: int, block: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many equal probabilities, questions with different options, and options that only one question has."""
    for name, value in {"_CELLS": cells, "BLOCK": block, "SORTED": together}.items():
        monkeypatch.setattr(f"mllm.metrics.rankings.{name}", value)
    monkeypatch.setattr("mllm.metrics.scoring.FEW", few)
    rng = np.random.default_rng(4)
    shares = {name: ([], []) for name in (*NAMES, "other")}  # class -> probabilities and truth
    series = {entry: Series(entry) for entry in (AUROC, AUPRC, SensitivityAtSpecificity)}
    for number in range(150):
        options = [*rng.choice([*NAMES, "other"], 3, replace=False).tolist(), f"only {number}"]
        probabilities = np.round(rng.dirichlet([1, 1, 1, 0.2]), 1)
        target = options[int(rng.choice(3))]
        for option, probability in zip(options[:3], probabilities, strict=False):
            shares[option][0].append(probability)
            shares[option][1].append(option == target)
        for own in series.values():
            own.add(Answer("", scores=dict(zip(options, probabilities.tolist(), strict=True))), Answer(target))
    figures = {name: value for own in series.values() for name, value in own.result(3).items()}
    areas = [sklearn_metrics.roc_auc_score(truth, probabilities) for probabilities, truth in shares.values()]
    precisions = [sklearn_metrics.average_precision_score(truth, scores) for scores, truth in shares.values()]
    curves = [sklearn_metrics.roc_curve(truth, scores, drop_intermediate=False) for scores, truth in shares.values()]
    assert figures["auroc"] == pytest.approx(np.mean(areas), abs=1e-9)
    assert figures["auprc"] == pytest.approx(np.mean(precisions), abs=1e-9)
    for level in (0.9, 0.95):
        expected = np.mean([tpr[1 - fpr >= level - 1e-12].max() for fpr, tpr, _ in curves])
        assert figures[f"sensitivity@specificity{level}"] == pytest.approx(expected, abs=1e-9)
    assert figures["classes"] == 4 + 150
    ranking = series[AUROC].metric.rankings()[0]
    true, false = ranking.curve(series[AUROC].metric.units)
    fpr, tpr, _ = sklearn_metrics.roc_curve(shares[ranking.name][1], shares[ranking.name][0], drop_intermediate=False)
    assert np.allclose(true / ranking.targets, tpr[1:]) and np.allclose(false / ranking.others, fpr[1:])
