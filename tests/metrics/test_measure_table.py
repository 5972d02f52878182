"""Tests of `mllm.metrics.measure_table`."""

import numpy as np
from scores import measure_figures as measures

from mllm.metrics.measure_table import agreement_table

NAN = float("nan")


def test_the_table_contains_every_figure_with_its_interval():
    rng = np.random.default_rng(0)
    true = {"EF": rng.normal(55, 12, 40), "EDV": rng.normal(120, 30, 40)}
    predicted = {name: values + rng.normal(1, 4, 40) for name, values in true.items()}
    true["EDV"][:3], predicted["EDV"][5] = NAN, NAN
    figures = measures(predicted, true, [str(number) for number in range(40)])
    head, ef, edv = agreement_table(figures).splitlines()
    assert head.split() == ["samples", "MAE", "RMSE", "R2", "bias", "same", "category", "limits", "of", "agreement"]
    assert ef.startswith("EF (%)")
    for figure in ("mae", "rmse", "r2", "bias", "category_agreement"):
        value, low, high = (figures[f"EF_{figure}{end}"] for end in ("", "_ci_low", "_ci_high"))
        assert f"{value:.2f} [{low:.2f}, {high:.2f}]" in ef
    assert ef.endswith(f"{figures['EF_loa_lower']:.2f} to {figures['EF_loa_upper']:.2f}")
    assert "37 (1 without prediction, 3 without reference)" in edv
    assert head.index("MAE") == ef.index(f"{figures['EF_mae']:.2f}") == edv.index(f"{figures['EDV_mae']:.2f}")
    assert edv.count("[") == 4, "volumes have no categories"
    last_line = agreement_table({**figures, "EF_against_volumes": 2.345}).splitlines()[-1]
    assert last_line == "mean difference of EF and the EF of the volumes: 2.35 percentage points"


def test_nan_is_a_dash():
    figures = measures({}, {"EF": np.array([NAN, NAN])}, ["a", "b"])
    assert agreement_table(figures).splitlines()[1].split() == (
        ["EF", "(%)", "0", "(2", "without", "reference)", *["undefined"] * 6, "to", "undefined"]
    )
