"""Bootstrap over patients: weights, intervals and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from bench.bootstrap_coverage import accuracy_interval

from mllm.metrics.bootstrap import ClassCounts, interval, resampled_weights
from mllm.metrics.classification import Accuracy, BalancedAccuracy
from mllm.metrics.scoring import Series
from mllm.structures import Answer


def test_figures_follow_answers_that_are_added_after_them() -> None:
    series, rng = Series(BalancedAccuracy), np.random.default_rng(0)
    pairs = [(str(rng.integers(3)), str(rng.integers(3))) for _ in range(30)]
    for count, (prediction, reference) in enumerate(pairs, start=1):
        series.add(Answer(prediction), Answer(reference))
        if count % 10 == 0:
            recalls = [[p == r for p, r in pairs[:count] if r == name] for name in {r for _, r in pairs[:count]}]
            assert series.result(3)["balanced_accuracy"] == pytest.approx(np.mean([np.mean(part) for part in recalls]))


def test_all_samples_of_a_patient_are_drawn_together() -> None:
    series = Series(Accuracy)
    for group in ("a", "b", "a", None, None, "b"):
        series.add(Answer("yes"), Answer("yes", group=group))
    groups = series.groups
    assert groups.tolist() == [0, 1, 0, 2, 3, 1]
    weights = np.concatenate(list(resampled_weights(groups, resamples=3000)))
    assert weights.shape == (3000, 6)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 3, 4]].sum(axis=1) == 4).all()
    # Draws of one of four groups are binomial: mean 1, variance 4 * 1/4 * 3/4.
    assert weights[:, 3].mean() == pytest.approx(1, abs=0.06)
    assert weights[:, 3].var() == pytest.approx(0.75, abs=0.06)


def test_weights_do_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.arange(50)
    whole = np.concatenate(list(resampled_weights(groups, resamples=40)))
    monkeypatch.setattr("mllm.metrics.bootstrap._CHUNK", 150)
    chunks = list(resampled_weights(groups, resamples=40))
    assert len(chunks) == 14 and (np.concatenate(chunks) == whole).all()


def test_weighted_counts_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    weights, samples, classes = rng.random((3, 20)), rng.integers(0, 20, 50), rng.integers(0, 4, 50)
    sums = ClassCounts(samples, classes, 6)(weights)
    for row, expected in zip(sums, weights, strict=True):
        assert row == pytest.approx(np.bincount(classes, expected[samples], 6))
    assert not ClassCounts(np.array([], int), np.array([], int), 2)(weights).any()


def test_intervals_contain_the_true_accuracy_in_95_percent_of_simulations() -> None:
    """`scripts/bench/bootstrap_coverage.py` repeats this 1,000 times: 93 to 97 %. Here 100 are within 3 deviations."""
    rng = np.random.default_rng(1)
    inside = sum(low <= 0.7 <= high for low, high in (accuracy_interval(rng, 400) for _ in range(100)))
    assert 88 <= inside <= 100


def test_interval_ignores_undefined_figures() -> None:
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(interval(np.array([np.nan]))).all()
