"""Scores of single answers in a report."""

from __future__ import annotations

import numpy as np

from mllm.metrics.coco import rle
from mllm.report.run.scores import score_rows


def test_an_answer_with_several_labels_has_the_f1_of_its_labels() -> None:
    """Half of the labels of the second answer are right: 2 * 1 / (2 * 1 + 0 + 1)."""
    texts = [("edema; mass", "mass; edema"), ("edema", "edema; mass"), ("perhaps", "mass")]
    rows = [
        {"prediction": prediction, "reference": reference, "task": "multi_label_classification"}
        for prediction, reference in texts
    ]
    scored = score_rows(rows, ["f1"], 10)
    assert [(number, score and score.text) for number, score in scored.worst] == [
        (2, "F1 of the labels: 0.00"),
        (1, "F1 of the labels: 0.67"),
        (0, "F1 of the labels: 1.00"),
    ]
    assert (scored.right, scored.wrong) == (1, 2)
    assert scored.rules == ["An answer is right if its labels are those of the reference."]


def test_the_worst_answers_of_a_limit_are_the_first_of_all() -> None:
    """Numbers and classes in turn; the values of other tasks have no score, and come last."""
    tasks = ("regression", "classification", "detection")
    rows = [
        {"prediction": str(number % 7), "reference": str(number % 5), "task": tasks[number % 3]} for number in range(90)
    ]
    whole = score_rows(rows, ["mae/regression", "accuracy"], 100)
    assert len(whole.worst) == 90 and whole.right + whole.wrong == 90
    qualities = [score.quality for _, score in whole.worst if score]
    assert qualities == sorted(qualities) and len(set(qualities)) > 3
    for limit in (1, 17, 90):
        assert score_rows(rows, ["mae/regression", "accuracy"], limit).worst == whole.worst[:limit]
    nothing = [{"prediction": "", "reference": "", "task": "detection"}] * 5
    assert [number for number, _ in score_rows(nothing, [], 3).worst] == [0, 1, 2]
    assert [rule.split(":")[0] for rule in whole.rules] == ["mae", "accuracy", "exact_match"]


def test_surface_dice_is_shown_in_the_unit_of_the_sample() -> None:
    """Masks of 8 x 8 pixels that are equal, with and without a known spacing."""
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    fields = {"masks": [rle(mask)], "reference_masks": [rle(mask)]}
    row = {"prediction": "<mask>", "reference": "<mask>", **fields}
    for rows in ([{**row, "pixel_spacings": [[0.5, 0.5]]}] * 2, [row] * 2):
        assert [score and score.text for _, score in score_rows(rows, ["nsd"], 2).worst] == ["surface Dice: 1.00"] * 2
