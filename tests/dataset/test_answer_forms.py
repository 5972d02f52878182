"""Answers in the notation of a program or in a wrong encoding are reported before the training."""

from __future__ import annotations

import json

import pytest

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.private_messages import call_privately


@pytest.fixture
def check(tmp_path):
    """Return a function that checks a split with these answers."""

    def check(*answers):
        path = tmp_path / "rows.jsonl"
        lines = [json.dumps({"question": "What is seen?", "answer": answer}) for answer in answers]
        path.write_text("\n".join(lines) + "\n")
        check_splits({"train": build_dataset(dict(type="TextQADataset", data_path=str(path)))})

    return check


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("['yes', 'no']", "are lists in the notation of a program"),
        ('["edema"]', "are lists in the notation of a program"),
        ("b'yes'", "are bytes in the notation of Python"),
        ("below &lt;5 mm", "have characters in the notation of HTML"),
        ("an opacity&#39;s border", "have characters in the notation of HTML"),
        ("Findings: none.\\nImpression: normal.", "have a backslash and a letter for the end of a line"),
        ("Bericht\\r\\n", "have a backslash and a letter for the end of a line"),
        ("L\u00c3\u00a4sion", "have characters of a wrong encoding"),
        ("the patient\u00e2\u20ac\u2122s heart", "have characters of a wrong encoding"),
        ("caf\ufffd", "have characters of a wrong encoding"),
    ],
)
def test_an_answer_that_no_person_writes_is_reported_with_its_first_row(check, caplog, answer, fault):
    check("yes", answer, answer)
    assert f"train: 2 of 3 answers {fault}" in caplog.text and "rows.jsonl, line 2)" in caplog.text
    caplog.clear()
    call_privately(lambda: check("yes", answer), True)
    assert "train, row 2)" in caplog.text and "rows.jsonl" not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "[1, 2, 3, 4]",
            '{"1": [[1, 2, 3, 4]]}',
            "[left]",
            "T1 & T2; and T3",
            "5 < 7 & 8 > 6",
            r"\nu and \rho",
            "R&D",
        ),
        *("N\u00c3O", "L\u00e4sion", "50 \u20ac", "the patient\u2019s heart", "b'", "it is 'b'", "\u5de6\u80ba"),
    ],
)
def test_other_answers_are_not_reported(check, caplog, answer):
    check("yes", answer)
    assert not caplog.text
