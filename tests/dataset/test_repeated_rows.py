"""Rows that stand in two splits without a patient are reported before the training."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.private_messages import call_privately


@pytest.fixture
def split(tmp_path):
    """Return a function that writes rows of image, question and answer and opens them as a split."""
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (40, 30), (9, 9, len(name))).save(tmp_path / name)

    def split(name, *rows):
        fields = ("image", "question", "answer")
        lines = [json.dumps(dict(zip(fields, row, strict=True))) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        return build_dataset(dict(type="VQADataset", data_path=str(tmp_path / f"{name}.jsonl")))

    return split


def test_rows_in_two_splits_are_counted(split, caplog, tmp_path):
    train = split("train", ("a.png", "Is it?", "yes"), ("b.png", "Is it?", "no"), ("c.png", "Is it?", "no"))
    absolute = str(tmp_path / "b.png")
    test = split("test", ("./a.png", "Is it?", "yes"), (absolute, "Is it?", "no"), (absolute, "Is it?", "no"))
    check_splits({"train": train, "test": test})
    assert "2 of 2 different rows of test are also in train, with the same images, questions and answers" in caplog.text
    caplog.clear()
    call_privately(lambda: check_splits({"train": train, "test": test}), True)
    assert "2 of 2 different rows of test are also in train" in caplog.text and "png" not in caplog.text


def test_other_questions_about_an_image_and_equal_questions_about_others_are_other_rows(split, caplog):
    train = split("train", ("a.png", "Is it?", "yes"), ("b.png", "Where?", "left"))
    test = split("test", ("a.png", "Where?", "left"), ("c.png", "Is it?", "yes"), ("a.png", "Is it?", "no"))
    check_splits({"train": train, "test": test})
    assert "are also in" not in caplog.text
