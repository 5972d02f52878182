"""Figures of an evaluation as a line and as a table."""

from __future__ import annotations

import pytest
from scores import score

from mllm.metrics.classification import Accuracy
from mllm.metrics.text import Choice, ShortAnswer
from mllm.report.figures import figures_line, figures_table, format_figures
from mllm.structures import Answer

REFERENCES = [Answer(text) for text in ("yes", "yes", "yes", "no")]
SAID = [Answer(text) for text in ("yes", "no", "no", "perhaps")]
BESIDE = "majority class 75.0 %, chance 50.0 %)"


@pytest.mark.parametrize(
    ("name", "metric", "line"),
    [
        ("accuracy", Accuracy, f"held-out accuracy: 25.0 % (untrained 75.0 %, {BESIDE}"),
        (
            "choice",
            Choice,
            f"held-out choice: accuracy 25.0 % (untrained 75.0 %, {BESIDE}, macro_f1 0.2500, unreadable 1, samples 4"
            " (untrained: macro_f1 0.4286, unreadable 0, samples 4)",
        ),
        (
            "short_answer",
            ShortAnswer,
            f"held-out short_answer: accuracy 25.0 % (untrained 75.0 %, {BESIDE}, precision 1.0000, "
            "recall 0.3333, f1 0.5000, yes_share 0.2500, failed 1, samples 4 (untrained: precision 0.7500, "
            "recall 1.0000, f1 0.8571, yes_share 1.0000, failed 0, samples 4)",
        ),
    ],
)
def test_every_accuracy_is_next_to_the_majority_class_and_chance(name, metric, line):
    """One of four is right: F1 of yes 2 / (1 + 3), of no 0. Always yes: F1 6 / 7 and 0."""
    trained, untrained = score(metric, SAID, REFERENCES), score(metric, [Answer("yes")] * 4, REFERENCES)
    assert figures_line(name, trained, untrained, 4, 4) == line
    rows = [row.split() for row in figures_table({name: trained}).splitlines()]
    assert [name, "majority_class", "0.7500"] in rows and [name, "chance", "0.5000"] in rows


def test_the_difference_from_the_untrained_model_is_beside_it() -> None:
    figures = {"accuracy": 0.75, "accuracy_ci_low": 0.5, "accuracy_ci_high": 1.0, "majority_class": 0.5, "chance": 0.25}
    untrained = {**figures, "accuracy": 0.25, "accuracy_ci_low": 0.0}
    differences = {"accuracy": 0.5, "accuracy_ci_low": -0.25, "accuracy_ci_high": 0.75}
    line = "held-out accuracy: 75.0 % [50.0, 100.0] (untrained 25.0 % [0.0, 100.0], difference +50.0 % [-25.0, +75.0], "
    assert figures_line("accuracy", figures, untrained, 4, 4, differences).startswith(line + "majority class 50.0 %")
    line = figures_line("mae", {"mae": 1.5, "failed": 0}, {"mae": 2.0, "failed": 1}, 4, 4, {"mae": -0.5})
    assert line == "held-out mae: mae 1.5000, failed 0 (untrained: mae 2.0000, failed 1; difference: mae -0.5000)"


def test_a_figure_has_its_interval_in_brackets() -> None:
    figures = {"accuracy": 0.75, "accuracy_ci_low": 0.5, "accuracy_ci_high": 1.0, "majority_class": 0.5, "chance": 0.5}
    assert figures_line("accuracy", figures, None, 4, 4) == (
        "held-out accuracy: 75.0 % [50.0, 100.0] (majority class 50.0 %, chance 50.0 %)"
    )
    assert figures_table({"accuracy": figures}).splitlines()[2].split(None, 2)[2] == "0.7500 [0.5000, 1.0000]"


def test_rows_without_a_target_are_stated() -> None:
    figures = {"accuracy": 0.875, "samples": 8}
    line = figures_line("rec", figures, None, 8, 20)
    assert line == "held-out rec (8 of 20 rows have a target): accuracy 0.8750, samples 8"
    last = figures_table({"rec": figures}, {"rec": 8}, 20).splitlines()[-1]
    assert last == "rec     rows with a target  8 of 20"


def test_the_table_has_counts_and_fractions() -> None:
    lines = figures_table({"rec": {"accuracy": 0.87512, "samples": 1200}, "res": {"cIoU": float("nan")}}).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["rec", "accuracy", "0.8751"],
        ["rec", "samples", "1,200"],
        ["res", "cIoU", "undefined"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_figures_are_formatted_as_one_line():
    figures = {"accuracy": {"accuracy": 0.5, "samples": 1200}, "rec": {"accuracy": 0.25, "samples": 3}}
    assert format_figures(figures["accuracy"]) == "accuracy 0.5000, samples 1,200"
    assert format_figures(figures["rec"]) == "accuracy 0.2500, samples 3"


def test_a_figure_that_is_not_defined_has_no_number_and_no_interval():
    nan = float("nan")
    undefined = {"accuracy": nan, "accuracy_ci_low": nan, "accuracy_ci_high": nan}
    assert format_figures(undefined) == "accuracy undefined"
    assert format_figures({"f1": 0.5, "f1_ci_low": nan, "f1_ci_high": nan}, "+") == "f1 +0.5000"
    line = figures_line("accuracy", {**undefined, "majority_class": 0.5, "chance": nan}, None, 3, 3)
    assert line == "held-out accuracy: undefined (majority class 50.0 %, chance undefined)"
