"""Tests of callbacks, the run log and log lines."""

import json
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from mllm.engine.callbacks import Checkpoints, Epochs
from mllm.engine.checkpoints import checkpoints, is_complete
from mllm.engine.meter import Meter
from mllm.engine.progress import log_line
from mllm.engine.run_log import RunLog, read_skipped, rows_of
from mllm.structures import Failure

ROW = {"loss": 1.25, "learning_rate": 2e-4, "tokens_per_second": 1234.5, "padding_share": 0.25, "peak_memory_gb": 1.5}


def _arguments(folder):
    return SimpleNamespace(output_dir=str(folder), should_save=True)


@pytest.mark.parametrize(("step", "epoch"), [(0, 0), (4, 0), (5, 1), (12, 2)])
def test_the_epoch_of_the_sampler_follows_from_the_step(step, epoch):
    class Sampler(list):
        def set_epoch(self, epoch):
            self.epoch = epoch

    sampler = Sampler(range(5))
    Epochs(sampler).on_epoch_begin(None, TrainerState(global_step=step), TrainerControl())
    assert sampler.epoch == epoch


def test_a_checkpoint_is_complete_before_older_ones_are_removed(tmp_path):
    callback = Checkpoints(limit=1)
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"x")
        callback.on_save(_arguments(tmp_path), TrainerState(global_step=step), TrainerControl())
    (left,) = checkpoints(tmp_path)
    assert left.name == "checkpoint-4"
    assert is_complete(left)


def test_the_log_contains_updates_and_evaluations_without_the_summary(tmp_path):
    state = TrainerState(is_world_process_zero=True)
    state.log_history = [{**ROW, "step": 1}, {"eval_loss": float("nan"), "step": 1}, {"train_loss": 1.0, "step": 1}]
    assert [row["step"] for row in rows_of(state)] == [1, 1]
    meter = Meter()
    meter.skip("train", [Failure("rows.jsonl, line 3: no")])
    meter.skip("test", [Failure("test.jsonl, line 1: no")])
    RunLog({"config": "a"}, meter).on_log(_arguments(tmp_path), state, TrainerControl())
    log = json.loads((tmp_path / "training_log.json").read_text())
    assert (log["config"], log["rows"][0]["loss"], log["rows"][1]["eval_loss"]) == ("a", 1.25, None)
    assert (tmp_path / "skipped_rows.txt").read_text() == (
        "# train\nrows.jsonl, line 3: no\n# test\ntest.jsonl, line 1: no\n"
    )
    assert read_skipped(tmp_path) == list(meter.failures.values())


def test_format_of_log_lines():
    row = {**ROW, "seconds": 35.0, "seconds_left": 3965.0}
    assert log_line(7, row, 800) == (
        "step     7  loss 1.2500  lr 2.00e-04  1,234 tokens/s  padding 25 %  peak 1.50 GB  "
        "0:00:35 passed, 1:06:05 left to step 800"
    )
    assert log_line(7, {"eval_loss": 0.5}, 800) == "step     7  validation loss 0.5000"
    assert log_line(7, {"train_loss": 0.5}, 800) == ""


def test_the_final_line_names_its_first_step():
    logs = {"train_loss": 0.69, "train_updates": 16, "train_from_step": 5400, "train_samples_per_second": 5.34}
    line = "step  5416  mean loss 0.6900 over the 16 updates since {}  5.3 samples/s"
    assert log_line(5416, logs, 5416) == line.format("the resume at step 5400")
    assert log_line(5416, {**logs, "train_from_step": 0}, 5416) == line.format("the start")
