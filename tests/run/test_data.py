"""Tests of `mllm.run.data`: the number of updates, and its limit with `--tiny`."""

from __future__ import annotations

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.errors import ConfigError
from mllm.run.data import TINY_UPDATES, limit_tiny_updates, open_splits, planned_updates
from mllm.run.prepare import prepare_args

CONFIGS = CHECKOUT / "config" / "training_configs"


@pytest.fixture
def limited(tmp_path, monkeypatch, caplog):
    """Return the config of a shipped file with `--tiny` before and after the limit, and the log."""
    monkeypatch.chdir(tmp_path)

    def limit(name: str, *overrides: str):
        config, _ = prepare_args(str(CONFIGS / f"{name}.py"), overrides, tiny=True)
        splits = open_splits(config)
        caplog.clear()
        with caplog.at_level("INFO", logger="mllm"):
            result = limit_tiny_updates(config, splits)
        return config, result, planned_updates(config, splits["train"]), caplog.text

    return limit


def test_a_tiny_run_makes_six_updates_and_logs_it(limited):
    config, result, updates, log = limited("t5gemma_mtnt_en_fr")
    assert (updates, result.training_args["max_steps"]) == (500, TINY_UPDATES)
    assert result == config.replaced(**{"training_args.max_steps": 6})
    assert "--tiny: 6 updates instead of 500; set another number with --cfg-options training_args.max_steps=N" in log


def test_epochs_are_limited_too(limited):
    config, result, updates, log = limited("medgemma_cpu_demo")
    assert config.training_args["max_steps"] == -1
    assert result.training_args["max_steps"] == 6 and f"6 updates instead of {updates}" in log


@pytest.mark.parametrize("name", ["medgemma_dp_reports", "gemma3n_3ncore_kd"])
def test_a_shorter_run_is_unchanged(limited, name):
    config, result, updates, log = limited(name)
    assert updates <= 20 and result is config and "updates instead" not in log


def test_a_number_of_the_command_line_is_not_limited(limited):
    config, result, updates, _ = limited("t5gemma_mtnt_en_fr", "training_args.max_steps=80")
    assert (updates, result) == (80, config)


def test_a_metric_without_a_test_split_is_warned_about(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    config, _ = prepare_args(str(CONFIGS / "t5gemma_mtnt_en_fr.py"), ["data_args.compute_metric=bleu"], tiny=True)
    open_splits(config.replaced(**{"data_args.test": None}))
    assert "--cfg-options: data_args.compute_metric has no effect: data_args.test is None or absent" in caplog.text


def test_a_metric_that_cannot_apply_is_refused_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["data_args.compute_metric=rec"]
    config, _ = prepare_args(str(CONFIGS / "t5gemma_mtnt_en_fr.py"), overrides, tiny=True)
    config = config.replaced(**{"data_args.test": config.data_args.train})
    with pytest.raises(
        ConfigError, match="^--cfg-options.*: data_args.compute_metric: metric 'rec' cannot be computed"
    ):
        open_splits(config)
