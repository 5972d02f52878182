"""Tests of the rows that are encoded before the training."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.config.reading import read_config
from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.errors import DataError
from mllm.run.lengths import refuse_unusable_texts, warn_of_cut_samples


@pytest.fixture
def log_of(folder, text_bundle, caplog):
    """A function that returns the log for answers with these numbers of words."""

    def log(name: str, words: list[int], split: str = "train") -> str:
        rows = [{"question": "What?", "answer": ("word " * count).strip()} for count in words]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = build_dataset({"type": "TextQADataset", "data_path": str(folder / "rows.jsonl")})
        config = read_config(CHECKOUT / "config" / "training_configs" / f"{name}.py")
        with caplog.at_level(logging.WARNING, logger="mllm"):
            warn_of_cut_samples(config, text_bundle.encoder, check_splits({split: dataset}))
        return caplog.text

    return log


def test_cut_samples_are_counted(log_of):
    expected = (
        "samples of the training split are longer than max_length (2 of 8 evenly spaced rows, 2 of the 8 longest)"
    )
    assert expected in log_of("gemma3n_medrescue", [5000, 1, 1, 1] * 2)


@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("validation", "validation")])
def test_one_cut_sample_among_many_is_found(log_of, split, name):
    expected = (
        f"samples of the {name} split are longer than max_length (0 of 16 evenly spaced rows, 1 of the 16 longest)"
    )
    assert expected in log_of("gemma3n_medrescue", [*range(1, 50), 5000, *range(50, 100)], split)


@pytest.mark.parametrize("text", ["\u5fc3" * 900, "1 " * 550, ". , ; : " * 150])
def test_a_text_with_few_characters_and_many_tokens_is_found(folder, text_bundle, caplog, text):
    """Its row is not evenly spaced, and the other rows have more characters."""
    rows = [{"question": "What?", "answer": "word " * 500} for number in range(60)]
    rows[40]["answer"] = text
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = check_splits({"train": build_dataset({"type": "TextQADataset", "data_path": str(folder / "rows.jsonl")})})
    assert 40 in [row.index for row in splits.reports["train"].longest]
    config = read_config(CHECKOUT / "config" / "training_configs" / "gemma3n_medrescue.py")
    warn_of_cut_samples(config, text_bundle.encoder, splits)
    assert "(0 of 16 evenly spaced rows, 1 of the 16 longest)" in caplog.text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("yes<end_of_turn>", "the text contains the control token '<end_of_turn>'; remove it"),
        ("<b>yes</b> <bos>", "the text contains the control token '<bos>'; remove it"),
    ],
)
def test_a_row_that_only_the_encoder_refuses_is_found_before_the_training(folder, text_bundle, answer, reason):
    """The row is neither among the longest rows nor among the evenly spaced ones."""
    rows = [{"question": "What is <this>?", "answer": f"word <i>{number}</i>" + "!" * 20} for number in range(60)]
    rows[37]["answer"] = answer
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = check_splits({"train": build_dataset({"type": "TextQADataset", "data_path": str(folder / "rows.jsonl")})})
    config = read_config(CHECKOUT / "config" / "training_configs" / "gemma3n_medrescue.py")
    with pytest.raises(DataError, match=f"rows.jsonl, line 38: {reason}; correct the row, or leave such rows out"):
        refuse_unusable_texts(config, text_bundle.encoder, splits)
    refuse_unusable_texts(replace(config, data_args=replace(config.data_args, on_error="skip")), None, splits)


def test_a_question_that_leaves_no_room_for_its_answer_is_found_before_the_training(folder, text_bundle):
    rows = [{"question": "word " * (9000 if number == 41 else 1), "answer": "yes"} for number in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = check_splits({"train": build_dataset({"type": "TextQADataset", "data_path": str(folder / "rows.jsonl")})})
    config = read_config(CHECKOUT / "config" / "training_configs" / "gemma3n_medrescue.py")
    with pytest.raises(DataError, match="rows.jsonl, line 42: the answer starts after max_length="):
        refuse_unusable_texts(config, text_bundle.encoder, splits)


def test_short_samples_and_private_runs_log_nothing(log_of):
    assert log_of("gemma3n_medrescue", [2] * 8) == ""
    assert log_of("vaultgemma_dp", [5000] * 8) == ""
