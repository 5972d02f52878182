"""Answers of FLARE in the form of the challenge, read by parsers with the rules of the published baselines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flare_rules import read_as_the_baselines_do

from mllm.dataset.builder import build_dataset
from mllm.dataset.challenge import challenge_entries, write_challenge_files
from mllm.dataset.public.flare import FLAREDataset
from mllm.dataset.public.flare_answers import challenge_answer
from mllm.files import json_text
from mllm.structures import Answer, Mark

QUESTION = "Question: What is shown? Options: A: normal, B: edema, C: nodule, D: another"


@pytest.mark.parametrize(
    ("task", "text", "value"),
    [
        ("classification", "B", "B"),
        ("classification", "(c) nodule", "(c) nodule"),  # unreadable: the letter is not followed by a separator
        ("classification", "The answer is B.", "B"),
        ("classification", "nodule", "C"),
        ("classification", "I cannot see it", "i cannot see it"),
        ("multi_label_classification", "Answer: caries ; crown.", ["caries", "crown"]),
        ("multi_label_classification", "nodule,mass", ["nodule", "mass"]),
        ("multi_label_classification", "nodule | mass", ["nodule", "mass"]),
        ("detection", "[10.4, -0.2, 99.6, 50]", [[10, 0, 100, 50]]),
        ("detection", "[[1, 2, 3, 4], [5, 6, 7, 8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("detection", "no box", []),
        ("instance_detection", '```json\n{"1": [[1, 2, 3.6, 4]]}\n```', {"1": [[1, 2, 4, 4]]}),
        ("instance_detection", '{"X": [5, 6, 7, 8]}', {"X": [[5, 6, 7, 8]]}),
        ("instance_detection", '{"1": [[1, 2', {}),
        ("counting", "1,234", 1234),
        ("counting", "The answer is 12.0", 12),
        ("counting", "many", None),
        ("regression", "1e-5", 0.00001),
        ("regression", "25.50 %", 25.5),
        ("regression", "-0.25", -0.25),
    ],
)  # fmt: skip
def test_the_published_scorers_read_the_value_of_an_answer(task, text, value) -> None:
    written = challenge_answer(Answer(text), task, QUESTION)
    assert read_as_the_baselines_do(written, task) == value


def test_predicted_marks_are_the_boxes_of_a_detection() -> None:
    boxes = tuple(Mark(box=(number, 2.0, 30.4, 40.0)) for number in (1.0, 5.0))
    assert challenge_answer(Answer("<loc>;<loc>", boxes), "detection", "Where?") == "[1, 2, 30, 40]; [5, 2, 30, 40]"


def test_an_unreadable_answer_and_a_report_are_written_as_they_are() -> None:
    for task in ("classification", "detection", "instance_detection", "counting", "regression", "report_generation"):
        assert challenge_answer(Answer(" Findings: 3 of 4 lobes are clear.\n"), task, QUESTION).endswith("are clear.")


@pytest.fixture
def flare(tmp_path: Path):
    options = {"type": "FLAREDataset", **FLAREDataset.miniature(tmp_path / "flare", 38)}
    return options, Path(options["data_path"])


def test_the_file_has_all_rows_of_the_question_files_with_their_keys_in_order(flare, tmp_path: Path) -> None:
    options, root = flare
    retino = root / "training/Retinography/retino/retino_questions_train.json"
    first = json.loads(retino.read_text())
    first[0] |= {"Id": 7, "Note": None}
    retino.write_text(json.dumps(first))
    split = build_dataset(options)
    answers = {index: Answer(f"text {index}") for index in range(len(split)) if index != 1}
    (path,) = write_challenge_files(split, answers.items(), tmp_path)
    rows = json.loads(path.read_text())
    published = [row for name in read_order(root) for row in json.loads(name.read_text())]
    assert path.name == "predictions.json" and len(rows) == 38
    assert [{**row, "Answer": None} for row in rows] == [{**row, "Answer": None} for row in published]
    assert [list(row) for row in rows] == [list(row) for row in published]
    assert all(isinstance(row["Answer"], str) for row in rows)
    assert rows[0]["Id"] == 7 and rows[1]["Answer"] == ""  # row 2 could not be used


def read_order(root: Path) -> list[Path]:
    """Return the question files in the order of the dataset."""
    split = build_dataset({"type": "FLAREDataset", "data_path": str(root)})
    names = [split.describe(index).partition(".json")[0] + ".json" for index in range(len(split))]
    return [Path(name) for name in dict.fromkeys(names)]


def test_a_combined_split_has_the_rows_of_the_challenge_alone(flare, tmp_path: Path) -> None:
    options, _ = flare
    other = {"type": "DummyDataset", "size": 2, "image_size": 32}
    subset = {"type": "SubsetDataset", "dataset": options, "indices": [3, 5]}
    split = build_dataset({"type": "ConcatDataset", "datasets": [other, subset]})
    answers = [(0, Answer("no")), (3, Answer("five\u2028\nsix"))]
    rows = [row for name, row in challenge_entries(split, answers) if name == "predictions.json"]
    full = build_dataset(options)
    assert [row["Answer"] for row in rows] == ["", "five\u2028\nsix"]
    assert [row["Question"] for row in rows] == [full.records[index]["question"] for index in (3, 5)]
    assert [path.read_text() for path in write_challenge_files(split, answers, tmp_path)] == [json_text(rows)]


def test_a_random_mixture_writes_no_file(flare, tmp_path: Path, caplog) -> None:
    options, _ = flare
    split = build_dataset({"type": "MixedDataset", "datasets": [options], "weights": [1.0]})
    assert write_challenge_files(split, [], tmp_path) == [] and not (tmp_path / "predictions.json").exists()
    assert "predictions.json is not written: the rows of the split are drawn at random" in caplog.text
