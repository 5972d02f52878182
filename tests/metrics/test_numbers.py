"""Metrics of numbers against scikit-learn, and the penalty of failed answers."""

from __future__ import annotations

import numpy as np
import pytest
from scores import score
from sklearn import metrics as sklearn_metrics

from mllm.metrics.numbers import MAE, R2, RMSE, LimitsOfAgreement
from mllm.metrics.scoring import Scorer
from mllm.structures import Answer


def test_errors_equal_scikit_learn_and_the_formula_of_bland_and_altman() -> None:
    rng = np.random.default_rng(0)
    true = np.round(rng.normal(50, 20, 100), 2)
    answers = np.round(true + rng.normal(2, 5, 100), 2)
    texts = [[f"{value:.2f} mm" for value in values] for values in (answers, true)]
    assert score(MAE, *texts)["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(true, answers), abs=1e-9)
    assert score(RMSE, *texts)["rmse"] == pytest.approx(sklearn_metrics.root_mean_squared_error(true, answers))
    assert score(R2, *texts)["r2"] == pytest.approx(sklearn_metrics.r2_score(true, answers), abs=1e-9)
    errors, figures = answers - true, score(LimitsOfAgreement, *texts)
    assert figures["bias"] == pytest.approx(errors.mean())
    for name, sign in (("loa_lower", -1), ("loa_upper", 1)):
        assert figures[name] == pytest.approx(errors.mean() + sign * 1.96 * errors.std(ddof=1))


@pytest.mark.parametrize("answer", ["", "about 12", "12 cm", "9" * 300, "12-14", "twelve", "12 and 13", "1e253", "nan"])
def test_a_failed_answer_counts_as_the_farthest_reference(answer: str) -> None:
    """References and 0 are 0 to 40; that of the failed answer is 20, so its error is 20."""
    references = ["10 mm", "20 mm", "40 mm"]
    figures = score(MAE, ["10 mm", answer, "40"], references)
    assert figures == {"mae": 20 / 3, "failed": 1, "unreadable_references": 0, "samples": 3}


def test_a_failed_answer_is_never_free() -> None:
    assert score(MAE, ["?"], ["7"])["mae"] == 7
    assert score(MAE, ["?"], ["0"])["mae"] == 1
    assert score(MAE, ["?", "50"], ["30", "70"])["mae"] == (40 + 20) / 2, "70 is farther from 30 than 0"


def test_references_that_are_no_number_are_not_scored() -> None:
    figures = score(MAE, ["1", "2", "3"], ["1", "unknown", "5"])
    assert figures == {"mae": 1.0, "failed": 0, "unreadable_references": 1, "samples": 2}


def test_counts_and_measurements_of_a_split_have_their_own_figures() -> None:
    scorer = Scorer({"mae": MAE})
    for answer, reference, task in (("3", "5", "counting"), ("1.5", "1.0", "regression"), ("B", "A", "classification")):
        scorer.add(Answer(answer), Answer(reference, task=task))
    figures = scorer.figures()
    assert {name: values["mae"] for name, values in figures.items()} == {"mae/counting": 2.0, "mae/regression": 0.5}
    assert scorer.scored() == {"mae/counting": 1, "mae/regression": 1}
