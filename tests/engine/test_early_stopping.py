"""Tests of `mllm.engine.early_stopping`, with and without a resume."""

import math

import pytest
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
        ([3.0, 2.95, 2.85, 2.85], 0.1, (2, 1)),  # slow progress adds up
    ],
)
def test_progress_is_counted_from_the_best(losses, threshold, expected):
    assert best_loss(losses, threshold) == expected


LOSSES = [3.0, 2.0, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5, 1.5]


class Scripted(TrainerCallback):
    """Lets the evaluations find these losses, before anybody looks."""

    def on_evaluate(self, args, state, control, **kwargs):
        state.log_history[-1]["eval_loss"] = LOSSES[state.global_step - 1]


def _trainer(make_trainer, tmp_path, name, patience=3):
    options = dict(max_steps=9, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    trainer = make_trainer(**options, output_dir=str(tmp_path / name))
    trainer.add_callback(Scripted())
    trainer.add_callback(EarlyStopping(patience))
    return trainer


def test_training_stops_when_the_patience_is_exhausted_and_logs_the_best_step(make_trainer, tmp_path, caplog):
    caplog.set_level("INFO", "mllm.engine.early_stopping")
    trainer = _trainer(make_trainer, tmp_path, "whole")
    trainer.train()
    assert trainer.state.global_step == 8
    assert "stopped at step 8: no lower validation loss in 3 evaluations since step 5 (1.0000)" in caplog.text


def test_a_resumed_run_stops_at_the_same_step(make_trainer, trained, tmp_path):
    whole = _trainer(make_trainer, tmp_path, "whole", patience=2)
    whole.train()
    assert whole.state.global_step == 4
    for step in (3, 4):  # in the middle of the patience, and when it has run out
        resumed = _trainer(make_trainer, tmp_path, f"resumed-{step}", patience=2)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 4
        for name, value in trained(whole).items():
            assert (value == trained(resumed)[name]).all(), name
