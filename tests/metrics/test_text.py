"""Figures about short answers, by hand."""

import pytest

from mllm.metrics.text import accuracy, short_answer, stated
from mllm.structures import Answer


def answers(*texts: str) -> list[Answer]:
    return [Answer(text) for text in texts]


def test_case_spaces_and_closing_punctuation_do_not_matter_but_extra_words_do():
    figures = accuracy(answers("CT.", " mri", "It is CT", "INCORRECT"), answers("CT", "MRI", "CT", "correct"))
    assert figures == {"accuracy": 0.5, "chance": 1 / 3, "samples": 4}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("The left lung is dark. So the answer is Yes.", "yes"),
        ("the answer is a chest  X-ray", "a chest x-ray"),
        ("Answer: no.", "no"),
        ("Answer: [0.1,0.2,0.3,0.4]", "[0.1,0.2,0.3,0.4]"),
        ("The answer is yes.\nAnswer: yes", "yes"),
        ("The answer is yes.\nAnswer: no", None),
        ("yes", None),
        ("Answer:", None),
        ("", None),
    ],
)
def test_a_result_is_what_the_phrase_says(text, result):
    assert stated(text) == result


def test_short_answers_count_failures_and_score_them_as_wrong():
    said = answers("The answer is CT.", "It is CT", "So the answer is MRI", "Answer: a. Answer: b")
    assert short_answer(said, answers("CT", "Answer: CT.", "The answer is MRI.", "a")) == {
        "accuracy": 0.5,
        "failed": 1,
        "samples": 4,
    }


def test_yes_and_no_have_precision_recall_and_f1():
    """Yes is said three times, once rightly; it would have been right twice."""
    said = answers("Answer: yes", "Answer: yes", "Answer: yes", "Answer: no", "perhaps")
    figures = short_answer(said, answers("yes", "no", "no", "No.", "The answer is yes."))
    assert figures == pytest.approx(
        {
            "accuracy": 2 / 5,
            "failed": 1,
            "samples": 5,
            "precision": 1 / 3,
            "recall": 1 / 2,
            "f1": 2 / 5,
            "yes_share": 3 / 5,
        }
    )


def test_never_saying_yes_is_no_division_by_zero():
    figures = short_answer(answers("no"), answers("yes"))
    assert (figures["f1"], figures["precision"], figures["failed"]) == (0, 0, 1)


@pytest.mark.parametrize("metric", [accuracy, short_answer])
def test_nothing_asked_is_nothing_known(metric):
    figures = metric([], [])
    assert figures["samples"] == 0
    assert figures["accuracy"] != figures["accuracy"]
