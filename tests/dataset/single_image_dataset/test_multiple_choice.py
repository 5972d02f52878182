"""Multiple-choice questions in the columns of published data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.dataset.single_image_dataset.multiple_choice import INSTRUCTION, MultipleChoiceDataset
from mllm.errors import DataError
from mllm.parsing import options_in

OPTIONS = {"A": "rest, and ice", "B": "heat", "C": "surgery"}


def write(folder: Path, **row) -> MultipleChoiceDataset:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return MultipleChoiceDataset(folder / "rows.jsonl")


@pytest.mark.parametrize(
    "row",
    [
        {"options": OPTIONS, "answer": "rest, and ice", "answer_idx": "A"},  # MedQA
        {"choices": list(OPTIONS.values()), "answer": 0},  # MMLU
        {"options": json.dumps(OPTIONS), "answer": "rest, and ice"},  # a csv file
        {"options": OPTIONS, "answer": 0, "answer_idx": "A"},
        {"options": OPTIONS, "answer": "Because of the swelling.", "answer_idx": "A"},  # an explanation
    ],
)
def test_published_columns_become_a_question_with_its_options_and_a_letter(tmp_path: Path, row) -> None:
    user, assistant = write(tmp_path, question="What helps?", **row).sample(0).turns
    assert user.text == f"What helps?\nOptions: A: rest, and ice, B: heat, C: surgery\n{INSTRUCTION}"
    assert options_in(user.text) == OPTIONS and assistant.text == "A"


def test_options_in_the_question_need_no_column(tmp_path: Path) -> None:
    data = write(tmp_path, question="What helps? Options: A: ice B: heat", answer="B")
    assert [turn.text for turn in data.sample(0).turns] == [f"What helps? Options: A: ice B: heat\n{INSTRUCTION}", "B"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Why?", "answer": "A"}, "line 1: the row has fewer than two options"),
        (
            {"question": "Why?", "options": {"B": "x", "A": "y"}, "answer": "A"},
            "'options' must be a list, or",
        ),
        ({"question": "Why?", "options": ["x", "y"], "answer": 2}, "'answer' is not one of the options"),
        ({"question": "Why?", "options": ["x", "y"], "answer": "x or y"}, "'answer' is not one of the options"),
        ({"question": "Why?", "options": ["x", "y"]}, "the row has no answer_idx or answer"),
        (
            {"question": "Why?", "options": ["x", "y"], "answer_idx": "A", "answer": "y"},
            "line 1: fields 'answer_idx' and 'answer' name different options: correct one",
        ),
        ({"question": "Why?", "options": ["x", "y"], "answer_idx": 0, "answer": 1}, "name different options"),
        ({"question": " ", "options": ["x", "y"], "answer": 0}, "field 'question' is missing or empty"),
    ],
)
def test_a_row_that_is_no_question_with_an_answer_is_refused(tmp_path: Path, row, message) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path, **row).sample(0)
