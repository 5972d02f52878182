"""Checks of optimizer, schedule and trackers before weights are loaded."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

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


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fsdp": True}, "fsdp divides the weights among several processes, and this run has one: start it with mllm"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed needs a launcher, also for one process: start"),
    ],
)
def test_engines_are_refused_without_a_launcher_before_weights_are_loaded(options, reason, monkeypatch):
    """DeepSpeed ended in a traceback about mpi4py."""
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=reason):
        check_early(config(**options), CPU, updates=10)


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
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (dict(lr_scheduler_type="cosine_with_min_lr"), "lr_scheduler_type='cosine_with_min_lr' cannot be used"),
        (dict(lr_scheduler_kwargs=dict(nonsense=1), lr_scheduler_type="polynomial"), "cannot be used"),
        (dict(optim="adamw_torch", optim_args="betas"), "optim='adamw_torch' cannot be used"),
        (
            dict(lr_scheduler_type="polynomial", lr_scheduler_kwargs=dict(lr_end=-1e-4)),
            r"learning rate is -\S+ times learning_rate in update \d+: the weights would move away",
        ),
        (
            dict(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=dict(min_lr_rate=2)),
            "times learning_rate in update 2: learning_rate must be the largest",
        ),
        (dict(lr_scheduler_type="constant", lr_scheduler_kwargs=dict(num_cycles=2)), "'constant' ignores lr_scheduler"),
        (dict(optim="adamw_torch", optim_args="momentum=0.9"), "'adamw_torch' ignores optim_args='momentum=0.9'"),
        (dict(optim="sgd", optim_args="momentum=0.9,betta=1"), "optim='sgd' ignores optim_args='betta=1'"),
        (dict(optim="adafactor", optim_args="relative_step=True"), "optim='adafactor' ignores"),
        (
            dict(gradient_checkpointing_kwargs=dict(every_n_layer=2)),
            "unknown option 'every_n_layer' in gradient_checkpointing_kwargs: did you mean 'every_n_layers'",
        ),
        (dict(torch_compile_backend="inductr"), "does not know 'inductr': did you mean 'inductor'"),
        (dict(torch_compile_mode="max_autotune"), "does not know 'max_autotune': did you mean 'max-autotune'"),
        (
            dict(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="steps"),
            "save and eval strategy to match",
        ),
    ],
)
def test_settings_that_fail_in_trainer_are_refused(options, fragment):
    with pytest.raises(ConfigError, match=fragment):
        check_early(config(**options), CPU, updates=10)


def test_options_that_have_an_effect_are_accepted():
    check_early(config(optim="sgd", optim_args="momentum=0.9, nesterov=True"), CPU, updates=10)
    check_early(config(gradient_checkpointing_kwargs=dict(every_n_layers=2, preserve_rng_state=False)), CPU, updates=10)
    options = dict(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=dict(min_lr_rate=0.1))
    check_early(config(**options), CPU, updates=10)


def test_early_stopping_that_cannot_stop_the_run_is_warned_about(caplog):
    options = dict(early_stopping_patience=2, eval_strategy="steps", eval_steps=5)
    check_early(config(**options), CPU, updates=10)
    assert "early_stopping_patience=2 cannot stop this run, which has 2 validations" in caplog.text
    caplog.clear()
    check_early(config(**options), CPU, updates=11)
    assert not caplog.text


@pytest.mark.parametrize(
    ("strategy", "options", "updates", "epochs", "validations"),
    [
        ("steps", dict(eval_steps=5), 10, 1.0, 2),
        ("steps", dict(eval_steps=5, eval_delay=6), 10, 1.0, 1),
        ("steps", dict(eval_steps=4, eval_delay=8), 10, 1.0, 2),
        ("steps", dict(eval_steps=100), 10, 1.0, 1),
        ("steps", dict(eval_steps=0.5, eval_delay=5), 10, 1.0, 2),
        ("steps", dict(eval_steps=5, eval_delay=11), 10, 1.0, 0),
        ("epoch", dict(eval_delay=2), 10, 2.5, 2),
        ("epoch", dict(eval_delay=2.5), 10, 2.5, 1),
        ("epoch", dict(eval_delay=1), 10, 0.1, 0),
        ("epoch", dict(), 10, 0.1, 1),
    ],
)
def test_a_run_without_a_validation_is_warned_about(caplog, strategy, options, updates, epochs, validations):
    checked = config(eval_strategy=strategy, early_stopping_patience=9, **options)
    check_early(checked, CPU, updates, epochs)
    assert f"cannot stop this run, which has {validations} validations" in caplog.text
    assert ("so the model is never validated" in caplog.text) == (validations == 0)
    best = config(eval_strategy=strategy, load_best_model_at_end=True, save_strategy=strategy, **options)
    if validations:
        check_early(best, CPU, updates, epochs)
    else:
        with pytest.raises(ConfigError, match="never validated, and load_best_model_at_end=True would load nothing"):
            check_early(best, CPU, updates, epochs)


def test_an_impossible_weight_of_an_objective_is_refused():
    wrong = replace(config(), objectives={"next_token": {"type": "NextToken", "weight": -1}})
    with pytest.raises(ConfigError, match="an objective's weight must be at least 0 and finite"):
        check_early(wrong, CPU, updates=10)


def test_the_validations_of_trainer_are_those_that_are_counted(tmp_path):
    """Reference: the callback of transformers that decides when to validate."""
    flow, control = DefaultFlowCallback(), TrainerControl()
    options = dict(eval_strategy="steps", eval_steps=4, eval_delay=7, report_to=[], output_dir=str(tmp_path))
    arguments = TrainingArguments(**options)
    state = TrainerState(max_steps=10, eval_steps=4, save_steps=99, logging_steps=99)
    steps = []
    for state.global_step in range(1, 11):
        control.should_evaluate = False
        if flow.on_step_end(arguments, state, control).should_evaluate:
            steps.append(state.global_step)
    assert steps == [8, 10]


def test_a_warmup_that_the_schedule_ignores_is_logged(caplog):
    with caplog.at_level("INFO", logger="mllm"):
        check_early(config(lr_scheduler_type="constant", warmup_steps=0.1), CPU, updates=10)
    assert "lr_scheduler_type='constant' ignores warmup_steps" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_without_its_package_is_refused():
    with pytest.raises(ConfigError, match="the package of wandb is not installed: pip install wandb"):
        check_early(config(report_to=["tensorboard", "wandb"]), CPU, updates=10)
    with pytest.raises(ConfigError, match=r"report_to=\['wandb'\] cannot be used: .*wandb"):
        check_early(config(report_to="wandb"), CPU, updates=10)
