"""Tests of the search, on configs whose memory follows a formula."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.errors import ConfigError
from mllm.planning.cards import CARDS
from mllm.planning.plan import Plan
from mllm.planning.search import fitting, largest_micro_batch, sizes
from mllm.planning.step import Update

STEPS = "gradient_accumulation_steps"
RUN = """
model_args = dict(type="medgemma", model_name_or_path="ckpt/medgemma-4b-it", lora_r=64, max_length=1024,
                  image_size=448, image_token_len=256)
objectives = dict(next_token=dict(type="NextToken"))
training_args = dict(per_device_train_batch_size=8, gradient_accumulation_steps=2, bf16=True)
"""


@pytest.fixture
def planner(tmp_path):
    """Return a planner whose weights take 8, 4 or 2 GB, a sample 1 GB or with checkpointing 0.5 GB."""
    (tmp_path / "run.py").write_text(RUN)
    config = apply_rules(read_config(str(tmp_path / "run.py")), CARDS[-1].hardware())[0]
    asked = []

    def plan(changes) -> Plan:
        asked.append(dict(changes))
        own = config.replaced(**changes)
        model, training = own.model_args, own.training_args
        if model.load_in_8bit and model.load_in_4bit:
            raise ConfigError("one of them")
        weights = 2e9 if model.load_in_4bit else 4e9 if model.load_in_8bit else 8e9
        sample = (0.5e9 if training["gradient_checkpointing"] else 1e9) * model.max_length / 1024
        count = training["per_device_train_batch_size"]
        peak = int(weights + count * sample + (0.1e9 if "8bit" in training["optim"] else 0.4e9))
        return Plan(own, Update(peak, {}, 0, 0), count, count * model.max_length, 1, 1, None, 0, False, "")

    plan.asked = asked
    return plan


def test_the_largest_micro_batch_divides_the_update(planner):
    fit = largest_micro_batch(planner({}), planner, int(13e9), {}, 1)
    # 8.4 GB and 4 samples are 12.4 GB; an update keeps its 16 samples.
    assert fit.changes == {
        "training_args.per_device_train_batch_size": 4,
        "training_args.gradient_accumulation_steps": 4,
    }
    assert fit.plan.peak == 12.4e9


def test_an_update_of_three_samples_keeps_them(planner):
    changes = {"training_args.per_device_train_batch_size": 1, "training_args.gradient_accumulation_steps": 3}
    fit = largest_micro_batch(planner(changes), planner, int(30e9), changes, 1)
    assert fit.plan.samples == 3
    for asked in planner.asked:
        assert math.prod(asked[f"training_args.{key}"] for key in ("per_device_train_batch_size", STEPS)) == 3


def test_a_larger_micro_batch_is_found(planner):
    fit = largest_micro_batch(planner({}), planner, int(30e9), {}, 1)
    assert fit.plan.samples == 16


def test_the_micro_batch_is_the_first_change(planner):
    fit = fitting(planner({}), planner, int(9.5e9), 1)
    assert fit.changes["training_args.per_device_train_batch_size"] == 1 and len(fit.changes) == 2


def test_checkpointing_is_the_second(planner):
    fit = fitting(planner({}), planner, int(9.1e9), 1)
    assert fit.changes == {
        "training_args.gradient_checkpointing": True,
        **sizes(planner({}), 1),
    }


def test_needless_changes_are_left_out(planner):
    """With 4-bit weights checkpointing and the optimizer need not change."""
    fit = fitting(planner({}), planner, int(3.5e9), 1)
    assert fit.changes["model_args.load_in_4bit"] is True
    assert fit.plan.peak <= 3.5e9
    assert "training_args.optim" not in fit.changes or "training_args.gradient_checkpointing" not in fit.changes


def test_nothing_fits(planner):
    assert fitting(planner({}), planner, int(1e9), 1) is None
    assert {"training_args.gradient_checkpointing", "model_args.load_in_4bit", "model_args.lora_r"} <= {
        key for changes in planner.asked for key in changes
    }


def test_tokens_per_micro_batch_replace_the_batch_size(planner):
    plan = planner({})
    config = plan.config.replaced(**{"data_args.tokens_per_micro_batch": 4096})
    assert sizes(replace(plan, config=config), 2) == {"data_args.tokens_per_micro_batch": 2048}


def test_shipped_names_are_known():
    """Every checkpoint of a shipped config is in this repository, or is written by it."""
    from mllm.planning.checkpoint import find_published, published_checkpoints

    names = {name.lower() for record in published_checkpoints() for name in record.names}
    for file in sorted((Path(__file__).parents[2] / "config" / "training_configs").glob("*.py")):
        config = read_config(str(file))
        models = [config.model_args] + ([config.distill_args.teacher] if config.distill_args else [])
        for args in models:
            for name in (args.model_name_or_path, vars(args).get("vision_tower")):
                if name is not None and Path(name).name != "tiny-medgemma":
                    assert Path(name).name.lower() in names, (file, name)
                    find_published(name)
