"""Tests of the count of samples that `max_length` cuts."""

from __future__ import annotations

import json
import logging

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.config.reading import read_config
from mllm.dataset.builder import build_dataset
from mllm.run.lengths import warn_of_cut_samples


@pytest.fixture
def log_of(folder, text_bundle, caplog):
    """A function that returns the log for answers with a given number of words, of which every fourth is long."""

    def log(name: str, long: int) -> str:
        answers = ["word " * (long if number % 4 == 0 else 1) for number in range(8)]
        rows = [{"question": "What?", "answer": answer.strip()} for answer in answers]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = build_dataset({"type": "TextQADataset", "data_path": str(folder / "rows.jsonl")})
        config = read_config(CHECKOUT / "config" / "training_configs" / f"{name}.py")
        with caplog.at_level(logging.WARNING, logger="mllm"):
            warn_of_cut_samples(config, text_bundle.encoder, dataset)
        return caplog.text

    return log


def test_cut_samples_are_counted(log_of):
    expected = "2 of 8 encoded samples of the training split are longer than max_length"
    assert expected in log_of("gemma3n_medrescue", long=5000)


def test_short_samples_and_private_runs_log_nothing(log_of):
    assert log_of("gemma3n_medrescue", long=2) == ""
    assert log_of("vaultgemma_dp", long=5000) == ""
