"""Tests of the check for non-finite losses and gradients."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from transformers import TrainerCallback

from mllm.engine import finite_check
from mllm.engine.finite_check import HostCopy, skips_non_finite_steps
from mllm.errors import TrainingError

FUSED, UNFUSED = "adamw_torch_fused", "adamw_torch"


def _state(trainer):
    """Return a copy of the trained tensors and of the optimizer state."""
    states = trainer.optimizer.optimizer.state
    weights = {name: value.detach().clone() for name, value in trainer.learner.state_dict().items()}
    return weights, {
        parameter: {key: value.clone() for key, value in state.items()} for parameter, state in states.items()
    }


class Poison(TrainerCallback):
    """Callback that makes the loss or one gradient of an update non-finite, and copies the state before that update."""

    def __init__(self, trainer, kind, step):
        self.trainer, self.kind, self.step = trainer, kind, step
        self.steps_begun = 0
        parameter = next(value for name, value in trainer.learner.named_parameters() if "lora_B" in name)
        parameter.register_hook(lambda gradient: gradient * (float("inf") if self._is_due("gradient") else 1.0))

    def _is_due(self, kind):
        return self.kind == kind and self.steps_begun == self.step

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps_begun = state.global_step + 1
        if self.steps_begun == self.step:
            self.before = _state(self.trainer)
        objective = self.trainer.learner.objectives["next_token"]
        objective.start = objective.end = float("nan") if self._is_due("loss") else 1.0


def _fail(trainer, kind, step):
    """Train until the error about update `step` and return the poison; check that the failed update had no effect."""
    poison = Poison(trainer, kind, step)
    trainer.add_callback(poison)
    with pytest.raises(TrainingError, match=f"the {kind} is nan at step {step}; no checkpoint has been written yet"):
        trainer.train()
    (weights, states), (weights_before, states_before) = _state(trainer), poison.before
    assert all(torch.equal(weights[name], value) for name, value in weights_before.items())
    for parameter, state in states.items():  # a first gradient creates a state of zeros
        before = states_before.get(parameter, {key: torch.zeros_like(value) for key, value in state.items()})
        assert all(torch.equal(state[key], value) for key, value in before.items())
    return poison


@pytest.fixture
def late(monkeypatch):
    """Copies that finish only when they are awaited, as from a busy GPU."""
    monkeypatch.setattr(HostCopy, "is_ready", lambda copy: False)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("step", [2, 4])
def test_on_a_cpu_the_failed_update_stops_before_its_optimizer_step(make_trainer, kind, step):
    poison = _fail(make_trainer(max_steps=4, logging_steps=100), kind, step)
    assert poison.steps_begun == step


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("step", [2, 4])
def test_updates_after_a_failed_one_are_skipped_until_its_flags_arrive(make_trainer, late, kind, step):
    trainer = make_trainer(max_steps=4, logging_steps=100, optim=FUSED, weight_decay=0.1)
    poison = _fail(trainer, kind, step)
    assert poison.steps_begun == 3 if step == 2 else 4, "an epoch has 3 updates, and its end waits for the flags"


def test_flags_are_read_when_they_have_arrived(make_trainer, monkeypatch):
    polls = iter([False, False, True, True, True])
    monkeypatch.setattr(HostCopy, "is_ready", lambda copy: next(polls))
    trainer = make_trainer(max_steps=12, batch=1, logging_steps=100, optim=FUSED)
    assert _fail(trainer, "loss", 2).steps_begun == 3


@pytest.mark.parametrize("event", [dict(logging_steps=2), dict(save_strategy="steps", save_steps=2)])
def test_a_failed_update_is_neither_logged_nor_saved(make_trainer, late, tmp_path, event):
    trainer = make_trainer(**{"max_steps": 4, "logging_steps": 100, "optim": FUSED, **event})
    assert _fail(trainer, "gradient", 2).steps_begun == 2
    assert not trainer.state.log_history and not list((tmp_path / "run").glob("checkpoint-*"))


def test_an_evaluation_waits(make_trainer, late):
    trainer = make_trainer(max_steps=4, logging_steps=100, optim=FUSED, eval_strategy="steps", eval_steps=2)
    assert _fail(trainer, "loss", 1).steps_begun == 2


def test_other_optimizers_wait_before_their_step(make_trainer, late):
    trainer = make_trainer(max_steps=4, logging_steps=100, optim=UNFUSED)
    assert _fail(trainer, "gradient", 2).steps_begun == 2


def test_nothing_is_read_between_log_entries(make_trainer, late, monkeypatch):
    trainer = make_trainer(max_steps=4, batch=2, logging_steps=2, optim=FUSED)
    reads = []
    read = HostCopy.read
    monkeypatch.setattr(HostCopy, "read", lambda copy: reads.append(trainer.state.global_step) or read(copy))
    trainer.train()
    assert reads == [2, 2, 4, 4]


def test_the_check_does_not_change_the_updates(make_trainer, monkeypatch):
    def run():
        trainer = make_trainer(max_steps=3, optim=FUSED, weight_decay=0.1)
        trainer.train()
        return _state(trainer)

    weights, states = run()
    monkeypatch.setattr(finite_check, "skips_non_finite_steps", lambda optimizer: False)
    expected_weights, expected_states = run()
    assert all(torch.equal(weights[name], value) for name, value in expected_weights.items())
    for state, expected in zip(states.values(), expected_states.values(), strict=True):
        assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_a_training_after_a_failed_one_makes_updates(make_trainer, late):
    trainer = make_trainer(max_steps=2, logging_steps=100, optim=FUSED)
    poison = _fail(trainer, "gradient", 2)
    before, _ = _state(trainer)
    poison.step = 0
    trainer.train()
    after, _ = _state(trainer)
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_only_fused_adam_skips_on_the_device(make_trainer):
    for name, expected in ((FUSED, True), (UNFUSED, False), ("sgd", False), ("adafactor", False)):
        trainer = make_trainer(max_steps=1, optim=name)
        trainer.train()
        assert skips_non_finite_steps(trainer.optimizer) is expected, name
        assert not skips_non_finite_steps(trainer.optimizer.optimizer)


def _check_divided(rank: int, folder: Path) -> None:
    """Check divided gradients in one of two processes, and write the flags and the number of exchanges."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    exchanges, exchange, flags = [], torch.distributed.all_reduce, []
    for value in (1.0, float("nan"), float("inf")):
        whole = torch.ones(4, 3)
        whole[3, 1] = value  # in the part of the second process
        gradients = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (torch.ones(1), whole, torch.ones(5, 2))]
        gradients.append(distribute_tensor(torch.ones(2), mesh, [Replicate()]))
        torch.distributed.all_reduce = lambda *inputs: (exchanges.append(1), exchange(*inputs))
        flags.append(bool(finite_check._all_finite(gradients)))
        torch.distributed.all_reduce = exchange
    (folder / f"{rank}").write_text(f"{flags} {len(exchanges)}")
    torch.distributed.destroy_process_group()


def test_a_non_finite_part_on_one_process_is_reported_on_all_after_one_exchange(tmp_path):
    context = multiprocessing.get_context("fork")  # has imported PyTorch
    processes = [context.Process(target=_check_divided, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["[True, False, False] 3"] * 2
