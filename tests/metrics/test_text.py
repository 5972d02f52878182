"""Tests of the metrics of short answers against values computed by hand."""

from functools import partial

import pytest
from scores import score

from mllm.metrics.classification import Accuracy
from mllm.metrics.text import Choice, ShortAnswer
from mllm.parsing import parse_choice, stated_result
from mllm.structures import Answer

accuracy, choice, short_answer = (partial(score, entry) for entry in (Accuracy, Choice, ShortAnswer))


def answers(*texts: str) -> list[Answer]:
    return [Answer(text) for text in texts]


def test_case_spaces_and_closing_punctuation_do_not_matter_but_extra_words_do():
    figures = accuracy(answers("CT.", " mri", "It is CT", "INCORRECT"), answers("CT", "MRI", "CT", "correct"))
    assert figures == {"accuracy": 0.5, "majority_class": 0.5, "chance": 1 / 3, "samples": 4}


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
def test_stated_results(text, result):
    assert stated_result(text) == result


def test_short_answers_count_failures_and_score_them_as_wrong():
    predictions = answers("The answer is CT.", "It is CT", "So the answer is MRI", "Answer: a. Answer: b")
    assert short_answer(predictions, answers("CT", "Answer: CT.", "The answer is MRI.", "a")) == {
        "accuracy": 0.5,
        "majority_class": 0.5,
        "chance": 1 / 3,
        "failed": 1,
        "samples": 4,
    }


def test_plain_answers_are_results_if_they_are_among_the_references():
    """Three of four are correct; `perhaps` is no result, and always yes would be correct twice."""
    figures = short_answer(answers("Yes.", "no", "no", "perhaps"), answers("yes", "no", "No.", "yes"))
    assert figures == pytest.approx(
        {
            "accuracy": 3 / 4,
            "majority_class": 1 / 2,
            "chance": 1 / 2,
            "failed": 1,
            "samples": 4,
            "precision": 1.0,
            "recall": 1 / 2,
            "f1": 2 / 3,
            "yes_share": 1 / 4,
        }
    )
    assert short_answer(answers("a long cat", "cat"), answers("cat", "cat"))["failed"] == 1


def test_yes_and_no_have_precision_recall_and_f1():
    """Yes is predicted three times, once correctly; it is the reference twice."""
    predictions = answers("Answer: yes", "Answer: yes", "Answer: yes", "Answer: no", "perhaps")
    figures = short_answer(predictions, answers("yes", "no", "no", "No.", "The answer is yes."))
    assert figures == pytest.approx(
        {
            "accuracy": 2 / 5,
            "majority_class": 3 / 5,
            "chance": 1 / 2,
            "failed": 1,
            "samples": 5,
            "precision": 1 / 3,
            "recall": 1 / 2,
            "f1": 2 / 5,
            "yes_share": 3 / 5,
        }
    )


def test_precision_without_yes_is_zero():
    figures = short_answer(answers("no"), answers("yes"))
    assert (figures["f1"], figures["precision"], figures["failed"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("yes", "yes"),
        (" Maybe. ", "maybe"),
        ("No, because yes men were asked.", "no"),
        ("Well, yes", "yes"),
        ("It was seen twice.\nMaybe", "maybe"),
        ("So the answer is no.", "no"),
        ("No one knows", None),
        ("not yes", None),
        ("yesterday", None),
        ("yes or no", None),
        ("Yes. No. Maybe.", None),
        ("Yes, the answer is no.", None),
        ("", None),
    ],
)
def test_a_choice_is_a_complete_clause(text, result):
    assert parse_choice(text, {"yes", "no", "maybe"}) == result


def test_a_choice_that_contains_periods_is_parsed():
    assert parse_choice("St. Mary", {"st. mary", "other"}) == "st. mary"


def test_unreadable_choices_are_wrong():
    """yes: 1 correct of 2 predictions and 3 references, F1 2/5; no: 1 of 1 and 1, F1 1; maybe: 0 of 1 and 1."""
    predictions = answers("Yes.", "maybe", "perhaps yes", "no, not at all", "yes")
    figures = choice(predictions, answers("yes", "yes", "yes", "No", "Maybe"))
    expected = {
        "accuracy": 2 / 5,
        "majority_class": 3 / 5,
        "chance": 1 / 3,
        "macro_f1": (2 / 5 + 1 + 0) / 3,
        "unreadable": 1,
        "samples": 5,
    }
    assert figures == pytest.approx(expected)
