"""Tests of `mllm.engine.early_stopping`, with and without a resume."""

import math

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from mllm.engine.early_stopping import EarlyStopping, best_loss


@pytest.mark.parametrize(
    ("losses", "threshold", "expected"),
    [
        ([], 0.0, (0, 0)),
        ([3.0], 0.0, (0, 0)),
        ([3.0, 2.0, 1.0], 0.0, (2, 0)),
        ([3.0, 1.0, 2.0, 1.0], 0.0, (1, 2)),
        ([3.0, math.nan, math.nan], 0.0, (0, 2)),
        ([math.nan, 2.0], 0.0, (1, 0)),
        ([3.0, 2.95, 2.9], 0.1, (0, 2)),
        ([3.0, 2.95, 2.85, 2.85], 0.1, (2, 1)),  # small decreases add up
    ],
)
def test_progress_is_counted_from_the_best(losses, threshold, expected):
    assert best_loss(losses, threshold) == expected


LOSSES = [3.0, 2.0, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5, 1.5]


class Scripted(TrainerCallback):
    """Callback that replaces the validation losses, in the history and for the selection of the best checkpoint."""

    def __init__(self, losses):
        self.losses = losses

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        state.log_history[-1]["eval_loss"] = metrics["eval_loss"] = self.losses[state.global_step - 1]


def _trainer(make_trainer, tmp_path, name, patience=3, threshold=0.0, losses=LOSSES, **changes):
    options = dict(max_steps=9, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    trainer = make_trainer(**options | changes, output_dir=str(tmp_path / name))
    trainer.add_callback(Scripted(losses))
    trainer.add_callback(EarlyStopping(patience, threshold))
    return trainer


def test_training_stops_when_the_patience_is_exhausted_and_logs_the_best_step(make_trainer, tmp_path, caplog):
    caplog.set_level("INFO", "mllm.engine.early_stopping")
    trainer = _trainer(make_trainer, tmp_path, "whole")
    trainer.train()
    assert trainer.state.global_step == 8
    assert "stopped at step 8: no lower validation loss in 3 evaluations since step 5 (1.0000)" in caplog.text
    assert "the last weights are kept" in caplog.text


@pytest.mark.parametrize(("save_steps", "loaded"), [(1, 4), (3, 3)])
def test_the_step_of_the_loaded_weights_is_logged(make_trainer, trained, tmp_path, caplog, save_steps, loaded):
    """The loss falls by less than the threshold, so the best checkpoint is later than the step of the last progress."""
    caplog.set_level("INFO", "mllm.engine.early_stopping")
    options = dict(load_best_model_at_end=True, save_steps=save_steps, losses=[3.0, 2.0, 1.95, 1.9, 1.99])
    trainer = _trainer(make_trainer, tmp_path, "run", threshold=0.1, **options)
    trainer.train()
    line = "no validation loss that is lower by more than 0.1 in 3 evaluations since step 2 (2.0000)"
    assert f"stopped at step 5: {line}" in caplog.text
    assert f"the weights of step {loaded} are loaded: its validation loss is the best of all checkpoints" in caplog.text
    assert "step 2 are loaded" not in caplog.text
    saved = load_file(tmp_path / "run" / f"checkpoint-{loaded}" / "model.safetensors")
    assert all((saved[name] == value).all() for name, value in trained(trainer).items())


def test_a_resumed_run_stops_at_the_same_step(make_trainer, trained, tmp_path):
    whole = _trainer(make_trainer, tmp_path, "whole", patience=2)
    whole.train()
    assert whole.state.global_step == 4
    for step in (3, 4):  # before and after the patience is exhausted
        resumed = _trainer(make_trainer, tmp_path, f"resumed-{step}", patience=2)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 4
        actual = trained(resumed)
        for name, value in trained(whole).items():
            assert (value == actual[name]).all(), name
