"""Accuracy of short answers, by hand."""

from mllm.metrics.text import accuracy


def test_case_spaces_and_closing_punctuation_do_not_matter_but_extra_words_do():
    figures = accuracy(["CT.", " mri", "It is CT", "INCORRECT"], ["CT", "MRI", "CT", "correct"])
    assert figures == {"accuracy": 0.5, "chance": 1 / 3, "samples": 4}
