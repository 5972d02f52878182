"""Scores of single answers in a report."""

from __future__ import annotations

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
