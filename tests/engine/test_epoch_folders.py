"""The log of GEMMA 3NCORE, counted by hand, and a folder for every epoch."""

import json
import math
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from mllm.engine.epoch_folders import FOLDER, EpochFolders, published_log

ROWS = [
    {"step": 1, "epoch": 0.5, "loss": 4.0, "cpu_percent": 50.0, "ram_percent": 30.0, "peak_memory_gb": 1.0},
    {"step": 2, "epoch": 1.0, "loss": 2.0, "cpu_percent": 70.0, "ram_percent": 40.0, "peak_memory_gb": 3.0},
    {"step": 2, "epoch": 1.0, "eval_loss": 2.5},
    {"step": 3, "epoch": 1.5, "loss": 1.0, "cpu_percent": 10.0, "ram_percent": 10.0, "peak_memory_gb": 2.0},
    {"step": 4, "epoch": 2.0, "loss": 0.5, "cpu_percent": 20.0, "ram_percent": 20.0, "peak_memory_gb": 2.0},
    {"step": 4, "epoch": 2.0, "eval_loss": 3.0},
    {"step": 5, "epoch": 2.5, "loss": 0.1, "cpu_percent": 20.0, "ram_percent": 20.0, "peak_memory_gb": 2.0},
]


def test_the_published_keys_hold_means_of_epochs(tmp_path: Path):
    (tmp_path / FOLDER / "epoch_02_20260102_030405").mkdir(parents=True)
    log = published_log({"lr": 2e-5}, ROWS, tmp_path)
    assert list(log) == ["train_losses", "val_losses", "best_val_loss", "parameters", "epoch_details"]
    assert log["train_losses"] == [3.0, 0.75] and log["val_losses"] == [2.5, 3.0] and log["best_val_loss"] == 2.5
    assert log["parameters"] == {"lr": 2e-5}
    assert log["epoch_details"][0] == {
        **dict(epoch=1, train_loss=3.0, val_loss=2.5, cpu_usage_avg=60.0, ram_usage_avg=35.0, gpu_mem_peak=3.0),
        "checkpoint_path": None,
    }
    assert log["epoch_details"][1]["checkpoint_path"] == f"{FOLDER}/epoch_02_20260102_030405"
    json.dumps(log, allow_nan=False)


def test_a_run_without_validation_has_no_best(tmp_path: Path):
    log = published_log({}, [row for row in ROWS if "eval_loss" not in row], tmp_path)
    assert log["val_losses"] == [None, None] and log["best_val_loss"] is None
    assert published_log({}, [], tmp_path)["train_losses"] == []


@pytest.mark.parametrize("epochs", [2])
def test_a_folder_an_epoch_also_over_a_resume(tmp_path: Path, epochs: int):
    written = []

    def write(folder: Path) -> None:
        folder.mkdir()
        written.append(folder.name)

    args, control = TrainingArguments(str(tmp_path), report_to=[]), TrainerControl()
    for state in (TrainerState(epoch=1.0), TrainerState(epoch=1.0), TrainerState(epoch=2.0)):
        EpochFolders(write).on_epoch_end(args, state, control)  # the second is a resumed run's
    assert [name[:9] for name in written] == ["epoch_01_", "epoch_02_"]
    assert all(math.isfinite(float(name[9:17])) for name in written)


def test_a_run_that_ends_within_an_epoch_leaves_its_folder_to_the_run_that_completes_it(tmp_path: Path):
    written: list[str] = []
    args, control = TrainingArguments(str(tmp_path), report_to=[]), TrainerControl()
    for epoch in (0.75, 1.0, 1.6, 3 * (2 / 3)):
        EpochFolders(lambda folder: written.append(folder.name[:8])).on_epoch_end(
            args, TrainerState(epoch=epoch), control
        )
    assert written == ["epoch_01", "epoch_02"]


def test_another_process_writes_nothing(tmp_path: Path):
    state = TrainerState(epoch=1.0, is_world_process_zero=False)
    EpochFolders(lambda folder: pytest.fail("written")).on_epoch_end(
        TrainingArguments(str(tmp_path), report_to=[]), state, TrainerControl()
    )
    assert list(tmp_path.iterdir()) == []
