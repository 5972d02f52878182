"""Tests of the search, on configs whose memory follows a formula."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.errors import ConfigError
from mllm.planning import search
from mllm.planning.cards import CARDS
from mllm.planning.plan import Plan
from mllm.planning.search import fitting, largest_micro_batch, sizes, steps
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

    def allows(changes) -> bool:
        model = config.replaced(**changes).model_args
        return not (model.load_in_8bit and model.load_in_4bit)

    def plan(changes) -> Plan:
        asked.append(dict(changes))
        own = config.replaced(**changes)
        model, training = own.model_args, own.training_args
        if model.load_in_8bit and model.load_in_4bit:
            raise ConfigError("one of them")
        weights = 2e9 if model.load_in_4bit else 4e9 if model.load_in_8bit else 8e9
        sample = (0.5e9 if training["gradient_checkpointing"] else 1e9) * model.max_length / 1024
        count = training["per_device_train_batch_size"]
        components = {
            "weights in bfloat16": int(weights),
            "optimizer states": int(0.1e9 if "8bit" in training["optim"] else 0.4e9),
            "activations: language": int(count * sample),
        }
        update = Update(sum(components.values()), components, 0, 0)
        return Plan(own, update, count, count * model.max_length, 1, 1, None, 0, False, "")

    plan.asked, plan.allows = asked, allows
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
    """The bounds exclude all changes alone, and the last plan has all of them."""
    assert fitting(planner({}), planner, int(1e9), 1) is None
    assert {"training_args.gradient_checkpointing", "model_args.load_in_4bit", "model_args.lora_r"} <= {
        *planner.asked[-1]
    }
    assert len(planner.asked) == 2


def test_a_change_that_its_bound_excludes_is_not_planned(planner):
    fit = fitting(planner({}), planner, int(3.5e9), 1)
    planned = [asked for asked in planner.asked if "model_args.load_in_4bit" not in asked]
    # Without 8 or 4 bits the weights alone take 8 GB. A bound does not know that those in 8 bits take half of it.
    assert planned == [{}] and fit.plan.peak <= 3.5e9


def test_the_bound_finds_the_same_fit_as_plans_of_all_changes(planner, monkeypatch):
    limits = [int(share * 1e8) for share in range(8, 170, 3)]
    found = [fitting(planner({}), planner, limit, 1) for limit in limits]
    bounded = len(planner.asked)
    planner.asked.clear()
    monkeypatch.setattr(search, "least_peak", lambda *arguments: 0)
    expected = [fitting(planner({}), planner, limit, 1) for limit in limits]
    assert [fit and fit.changes for fit in found] == [fit and fit.changes for fit in expected]
    assert bounded < 0.7 * len(planner.asked)


def test_a_refused_change_before_which_others_were_not_planned_is_left_out(planner):
    """8 bits are excluded by their bound, and a plan shows that the model refuses 4 bits."""

    def plan(changes) -> Plan:
        if changes.get("model_args.load_in_4bit"):
            raise ConfigError("not this model")
        return planner(changes)

    plan.allows = planner.allows
    fit = fitting(planner({}), plan, int(4.5e9), 1)
    assert fit.changes["model_args.load_in_8bit"] is True and "model_args.load_in_4bit" not in fit.changes
    assert fit.plan.peak <= 4.5e9


def test_a_shorter_sample_has_a_smaller_micro_batch(planner):
    """Otherwise a micro-batch would have more of the shorter samples, and as many tokens."""
    plan = planner({"data_args.tokens_per_micro_batch": 1500})
    plan = replace(plan, samples=1, tokens=1500)
    lengths = [change for change in steps(plan) if "model_args.max_length" in change]
    assert lengths[0] == {"model_args.max_length": 512, "data_args.tokens_per_micro_batch": 750}


@pytest.mark.parametrize(("limit", "fits"), [(45e9, False), (75e9, True)])
def test_two_long_samples_are_planned_only_if_they_can_fit(planner, limit, fits):
    """A sample of 32K tokens takes 32 GB, and one of 2K tokens 2 GB."""
    changes = {
        "model_args.max_length": 32768,
        "training_args.per_device_train_batch_size": 1,
        f"training_args.{STEPS}": 2,
    }

    def plan(more) -> Plan:
        return planner({**changes, **more})

    plan.allows = planner.allows
    first = plan({})
    planner.asked.clear()
    fit = largest_micro_batch(first, plan, int(limit), {}, 1)
    assert fit.plan.samples == 1 + fits
    assert any(asked["training_args.per_device_train_batch_size"] == 2 for asked in planner.asked) is fits


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
