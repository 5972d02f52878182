"""Checks of optimizer, schedule and trackers before weights are loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from mllm.config.hardware import Hardware
from mllm.config.schema import DataArgs, ModelArgs, RunConfig
from mllm.config.training_args import fill_defaults
from mllm.errors import ConfigError
from mllm.run.early_checks import check_early

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)


def config(**options: Any) -> RunConfig:
    return RunConfig(
        model_args=ModelArgs("medgemma", "tiny"),
        data_args=DataArgs(validation=dict(type="Phantoms")),
        training_args=fill_defaults({"report_to": [], **options}),
        objectives={"next_token": {"type": "NextToken"}},
        name="run",
        path=Path("run.py"),
    )


def test_a_run_of_one_update_has_no_warmup(caplog):
    with caplog.at_level("INFO", logger="mllm"):
        checked = check_early(config(warmup_steps=0.03), CPU, updates=1)
    assert checked.training_args["warmup_steps"] == 0
    assert "warmup_steps is set to 0" in caplog.text


def test_several_processes_do_not_find_the_size_of_micro_batches(monkeypatch):
    PartialState()
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    auto = config().replaced(data_args=DataArgs(tokens_per_micro_batch="auto"))
    with pytest.raises(ConfigError, match="tokens_per_micro_batch='auto' needs one process, and this run has 2"):
        check_early(auto, CPU, updates=10)


def test_a_rate_that_is_0_throughout_is_refused():
    options = dict(num_stable_steps=0, num_decay_steps=0)
    with pytest.raises(ConfigError, match="the learning rate is 0 in all 3 updates"):
        check_early(config(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=options), CPU, updates=3)


def test_a_warmup_of_more_than_half_of_the_run_is_warned_about(caplog):
    check_early(config(warmup_steps=6), CPU, updates=10)
    assert "warmup takes 6 of 10 updates" in caplog.text
    caplog.clear()
    check_early(config(warmup_steps=5), CPU, updates=10)
    check_early(config(warmup_steps=6, lr_scheduler_type="constant"), CPU, updates=10)
    check_early(config(warmup_steps=6).replaced(tiny=True), CPU, updates=10)  # its few updates are those of --tiny
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (dict(lr_scheduler_type="cosine_with_min_lr"), "lr_scheduler_type='cosine_with_min_lr' cannot be used"),
        (dict(lr_scheduler_kwargs=dict(nonsense=1), lr_scheduler_type="polynomial"), "cannot be used"),
        (dict(optim="adamw_torch", optim_args="betas"), "optim='adamw_torch' cannot be used"),
        (
            dict(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="steps"),
            "save and eval strategy to match",
        ),
    ],
)
def test_settings_that_fail_in_trainer_are_refused(options, fragment):
    with pytest.raises(ConfigError, match=fragment):
        check_early(config(**options), CPU, updates=10)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_without_its_package_is_refused():
    with pytest.raises(ConfigError, match="the package of wandb is not installed: pip install wandb"):
        check_early(config(report_to=["tensorboard", "wandb"]), CPU, updates=10)
    with pytest.raises(ConfigError, match=r"report_to=\['wandb'\] cannot be used: .*wandb"):
        check_early(config(report_to="wandb"), CPU, updates=10)
