"""Tests of errors, agreement and intervals by hand, by numpy, and by drawing patients one at a time."""

import numpy as np
import pytest
from scores import measure_figures as measures
from scores import score

from mllm.contents import stated_measures
from mllm.metrics.measures import Measures, categories
from mllm.structures import Answer

NAN = float("nan")


def test_figures_by_hand():
    """Errors of EF: 2, -4, 6, 0; squares 4 + 16 + 36 = 56; references 20, 35, 45, 60 around 40: 400 + 25 + 25 + 400."""
    true = {"EF": np.array([20.0, 35.0, 45.0, 60.0])}
    predicted = {"EF": np.array([22.0, 31.0, 51.0, 60.0])}
    figures = measures(predicted, true, ["a", "b", "c", "d"])
    assert figures["EF_mae"] == 3
    assert figures["EF_rmse"] == pytest.approx(np.sqrt(14))
    assert figures["EF_r2"] == pytest.approx(1 - 56 / 850)
    assert figures["EF_bias"] == 1
    deviation = np.sqrt((1 + 25 + 25 + 1) / 3)
    assert figures["EF_loa_lower"] == pytest.approx(1 - 1.96 * deviation)
    assert figures["EF_loa_upper"] == pytest.approx(1 + 1.96 * deviation)
    assert figures["EF_category_agreement"] == 0.75
    assert (figures["EF_samples"], figures["EF_unknown"], figures["EF_failed"]) == (4, 0, 0)
    for figure in ("mae", "rmse", "bias", "category_agreement"):
        assert figures[f"EF_{figure}_ci_low"] <= figures[f"EF_{figure}"] <= figures[f"EF_{figure}_ci_high"]
    assert "EF_loa_lower_ci_low" not in figures


def test_volumes_have_no_categories_and_unknown_values_are_left_out_and_failed_ones_count_as_0():
    true = {"EDV": np.array([100.0, NAN, 120.0, 80.0, NAN]), "ESV": np.full(5, NAN)}
    predicted = {"EDV": np.array([110.0, 5.0, 100.0, NAN, NAN])}
    figures = measures(predicted, true, list("abcde"))
    assert figures["EDV_mae"] == pytest.approx((10 + 20 + 80) / 3)
    assert figures["EDV_bias"] == pytest.approx((10 - 20 - 80) / 3)
    assert (figures["EDV_samples"], figures["EDV_unknown"], figures["EDV_failed"]) == (3, 2, 1)
    assert "EDV_category_agreement" not in figures
    assert (figures["ESV_samples"], figures["ESV_unknown"]) == (0, 5)
    assert np.isnan(figures["ESV_mae"]) and np.isnan(figures["ESV_mae_ci_low"])
    same = measures({"EDV": np.array([110.0, 100.0, 0.0])}, {"EDV": true["EDV"][[0, 2, 3]]}, ["a", "c", "d"])
    assert all(
        same[key] == pytest.approx(figures[key], nan_ok=True) for key in same if key[4:] not in ("unknown", "failed")
    )


def test_a_bound_belongs_to_the_upper_category():
    assert categories(np.array([29.99, 30, 39.9, 40, 49.9, 50, 70])).tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_large_references_do_not_lose_precision():
    true = 1e6 + np.array([1.0, 2.0, 3.0, 4.0])
    figures = measures({"EDV": true + [0.1, -0.1, 0.1, -0.1]}, {"EDV": true}, list("abcd"))
    assert figures["EDV_r2"] == pytest.approx(1 - 0.04 / 5, rel=1e-6)


def slow_bootstrap(predicted, true, groups, seed, resamples):
    """Return intervals by drawing patients one at a time, with figures by numpy."""
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    rows = {name: [i for i, group in enumerate(groups) if group == name] for name in names}
    figures = []
    for _ in range(resamples):
        chosen = [i for name in rng.choice(names, len(names)) for i in rows[name]]
        p, t = predicted[chosen], true[chosen]
        error = p - t
        r2 = 1 - np.mean(error**2) / np.var(t)
        figures.append([np.abs(error).mean(), np.sqrt(np.mean(error**2)), r2, error.mean()])
    return np.percentile(figures, [2.5, 97.5], axis=0)


def test_intervals_draw_patients_not_samples():
    """Errors of the samples of a patient are equal, so an interval over samples would be too narrow."""
    rng = np.random.default_rng(0)
    groups = [f"p{number // 5}" for number in range(100)]
    true = rng.normal(55, 12, 100)
    predicted = true + np.repeat(rng.normal(1, 6, 20), 5)
    figures = measures({"EF": predicted}, {"EF": true}, groups, resamples=4000)
    expected = slow_bootstrap(predicted, true, groups, 2, 4000)
    for number, figure in enumerate(("mae", "rmse", "r2", "bias")):
        ends = figures[f"EF_{figure}_ci_low"], figures[f"EF_{figure}_ci_high"]
        width = expected[1, number] - expected[0, number]
        assert ends == pytest.approx(expected[:, number], abs=0.06 * width)
    alone = measures({"EF": predicted}, {"EF": true}, [None] * 100)
    assert alone["EF_mae"] == pytest.approx(figures["EF_mae"])
    assert alone["EF_bias_ci_high"] - alone["EF_bias_ci_low"] < 0.7 * width


def test_the_interval_has_no_width_for_one_patient():
    rng = np.random.default_rng(0)
    true = {"EF": rng.normal(55, 12, 30)}
    one = measures({"EF": true["EF"] + rng.normal(0, 5, 30)}, true, ["same"] * 30)
    assert one["EF_mae_ci_low"] == pytest.approx(one["EF_mae"]) == pytest.approx(one["EF_mae_ci_high"])


def test_predicted_ef_is_compared_with_predicted_volumes():
    """Volumes of 100 and 40 mL are an EF of 60 %, an error of 5 points; 80 and 40 mL are 50 %, which is correct."""
    predicted = {
        "EF": np.array([55.0, 50.0, 70.0]),
        "EDV": np.array([100.0, 80.0, NAN]),
        "ESV": np.array([40.0, 40, 1]),
    }
    true = {name: np.full(3, 50.0) for name in predicted}
    assert measures(predicted, true, list("abc"))["EF_against_volumes"] == pytest.approx(2.5)
    nothing = {name: np.full(3, NAN) for name in predicted}
    assert np.isnan(measures(nothing, true, list("abc"))["EF_against_volumes"])
    assert "EF_against_volumes" not in measures({"EF": predicted["EF"]}, {"EF": true["EF"]}, list("abc"))


def test_equal_references_have_no_r2():
    figures = measures({"EF": np.array([50.0, 52.0])}, {"EF": np.array([50.0, 50.0])}, ["a", "b"])
    assert np.isnan(figures["EF_r2"])
    assert figures["EF_mae"] == 1


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("EF 58.4 %, EDV 120.3 mL, ESV 50 mL.", {"EF": 58.4, "EDV": 120.3, "ESV": 50}),
        ("The EF is 55%.", {"EF": 55}),
        ("EF: 40 %, no, EF 30 %", {"EF": 40}),
        ("EDV = 99 mL, EF unknown", {"EDV": 99}),
        ("EF 58.4 mL", {}),
        ("EF -5.0 %", {"EF": -5}),
        ("EF \u22125 %, EDV +99.5mL", {"EF": -5, "EDV": 99.5}),
        ("EF of 55 %; EDV was 90 mL.", {"EF": 55, "EDV": 90}),
        ("EF 50-60 %", {}),
        ("EF 50 %-60 %, EDV 90 mL to 100 mL, ESV 40 mL \u00b1 5", {}),
        ("EF 50 % +/- 5 %, EDV 90 mL and 100 mL", {}),
        ("EF 58 % and 2 infarcts, EDV 120.1 mL or 3 more", {"EF": 58.0, "EDV": 120.1}),
        ("EF is 58.0 % and 120.1 mL is the EDV", {"EF": 58.0}),
        ("EF 58 % or 62 %", {}),
        (f"EF {'9' * 30} %, EDV 120000 mL", {}),
        ("EF < 40 %", {}),
        ("EF about 1.2.3 %", {}),
        ("LVEF 40 %, EDV 60 mL/m2, ESV 30 mLs", {}),
        ("", {}),
    ],
)
def test_measures_stated_in_a_text(text, figures):
    assert stated_measures(text) == figures


def test_the_metric_takes_numbers_of_heads_before_those_of_texts():
    references = [Answer("EF 50.0 %.", measures={"EF": 50.04}, group="a"), Answer("EF 60.0 %.", group="b")]
    predictions = [Answer("EF 10.0 %.", measures={"EF": 53.04}), Answer("EF 61.0 %.")]
    figures = score(Measures, predictions, references)
    assert figures["EF_mae"] == pytest.approx((3 + 1) / 2)
    silent = score(Measures, [Answer("I cannot tell."), Answer("EF 61.0 %.")], references)
    assert (silent["EF_samples"], silent["EF_failed"]) == (2, 1)
    assert silent["EF_mae"] == pytest.approx((50.04 + 1) / 2)


def test_a_failed_prediction_is_never_the_right_category():
    figures = measures({"EF": np.array([NAN, 20.0])}, {"EF": np.array([20.0, 20.0])}, ["a", "b"])
    assert figures["EF_category_agreement"] == 0.5


def test_texts_without_measures_have_no_figures():
    assert score(Measures, [Answer("yes")], [Answer("yes")]) == {}
