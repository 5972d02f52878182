"""Lower bounds of a search are compared with the plans that they replace."""

from __future__ import annotations

import pytest

from mllm.config.hardware import Hardware
from mllm.errors import UserError
from mllm.planning.answer import ConfigPlanner
from mllm.planning.bounds import least_peak
from mllm.planning.processes import peak_of
from mllm.tiny.checkpoints import write_tiny

CARD = Hardware("cuda", "a card", (8, 0), 2**34, 1, 2**34, 2)
CONFIG = """
model_args = dict(type="medgemma", model_name_or_path="{model}", lora_r=16, max_length=512, image_size=448,
                  image_token_len=64, trainable=dict(language="lora", projector="full"))
objectives = dict(next_token=dict(type="NextToken"))
data_args = dict(train=dict(type="DummyDataset", size=8, image_size=112), vision_cache=False)
training_args = dict(per_device_train_batch_size=4, optim="adamw_torch", bf16=True)
"""
CHANGES = [
    {"training_args.per_device_train_batch_size": 1, "training_args.gradient_accumulation_steps": 4},
    {"training_args.gradient_checkpointing": True},
    {"training_args.optim": "paged_adamw_8bit"},
    {"model_args.load_in_8bit": True},
    {"model_args.load_in_8bit": False, "model_args.load_in_4bit": True},
    {"model_args.image_token_len": 16},
    {"model_args.image_size": 224},
    {"model_args.max_length": 256},
    {"model_args.max_length": 128},
    {"model_args.lora_r": 4},
]


@pytest.fixture(scope="module")
def planner(tmp_path_factory) -> ConfigPlanner:
    """A planner of a model with few layers, which is planned twenty times."""
    folder = tmp_path_factory.mktemp("bounds")
    text = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    model = write_tiny("medgemma", folder / "model", text=text, vision={"num_hidden_layers": 1})
    (folder / "run.py").write_text(CONFIG.format(model=model))
    return ConfigPlanner(str(folder / "run.py"), [], CARD, False)


@pytest.mark.parametrize("gpus", [1, 4])
def test_no_bound_exceeds_the_plan(planner, gpus):
    """Of each change alone, and of all changes up to it, from the plan without changes and from all plans so far."""
    first = planner({})
    plans, together = [first], {}
    for change in CHANGES:
        together |= change
        for changes in [change, dict(together)][-1 if change == together else 0 :]:
            plan = planner(changes)
            bounds = [least_peak(known, plan.config, plan.samples, gpus) for known in ([first], plans)]
            assert 0 < bounds[0] <= bounds[1] <= peak_of(plan, gpus), changes
        plans.append(plan)


def test_a_bound_of_a_known_plan_is_near_it(planner):
    first = planner({})
    assert least_peak([first], first.config, first.samples, 1) == pytest.approx(0.95 * first.peak, rel=0.001)


def test_changes_are_refused_by_the_rules_alone(planner):
    count = len(planner.plans)
    refused = {"model_args.image_token_len": 48}
    assert planner.allows({"model_args.image_token_len": 16}) and not planner.allows(refused)
    assert len(planner.plans) == count
    with pytest.raises(UserError):
        planner(refused)
