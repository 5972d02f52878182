"""The log of GEMMA 3NCORE: phases with the reasons of choices, and published keys, computed by hand."""

import json
import logging
from pathlib import Path

import pytest

from mllm.config.hardware import Hardware
from mllm.config.schema import DataArgs, ModelArgs, RunConfig
from mllm.models.gemma3n.ncore_log import choices, log_conduit, log_reservoir, published_log
from mllm.run_files import EPOCHS

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
A100 = Hardware("cuda", "NVIDIA A100", (8, 0), 40 << 30, 1, 64 << 30, 8, "bf16")
REPORT = {"python": "3.11.7", "packages": {"torch": "2.15.0"}, "git": {"commit": None}}


def _config(**options) -> RunConfig:
    args = ModelArgs("gemma3n-student", "a/b", part="vision", **options)
    return RunConfig(args, DataArgs(), training_args={}, objectives={}, name="run", path=Path("run.py"))


def test_the_environment_is_a_table_in_log_and_folder(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        log_reservoir(REPORT, A100, tmp_path)
    table = (tmp_path / "environment.md").read_text()
    for line in (
        "| torch | 2.15.0 |",
        "| device | NVIDIA A100 |",
        "| memory of the device | 42.9 GB |",
        "| commit | none |",
    ):
        assert line in table
    assert "Reservoir: the environment" in caplog.text and "torch                  2.15.0" in caplog.text


@pytest.mark.parametrize(
    "hardware, options, lines",
    [
        (CPU, {}, ["device: a processor, because no GPU was found", "precision: fp32, because half precision is slow on a CPU",  # noqa: E501
                   "quantization: none, because the vision tower has convolutions and no Linear layer"]),
        (A100, {}, ["device: NVIDIA A100, because it is the first card that PyTorch lists",
                    "precision: bf16, because the config sets it and the card supports it"]),
        (A100, {"load_in_4bit": True}, ["quantization: 4 bits, as the config sets"]),
    ],
)  # fmt: skip
def test_every_choice_is_logged_with_its_reason(hardware: Hardware, options, lines: list[str]):
    values = choices(_config(**options), hardware)
    assert [line for line in lines if line not in values] == []


def test_choices_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        log_conduit(_config(), CPU)
    assert "Conduit: device, precision and quantization\n  device: a processor" in caplog.text


ROWS = [
    {"step": 1, "epoch": 0.5, "loss": 4.0, "cpu_percent": 50.0, "ram_percent": 30.0, "peak_memory_gb": 1.0},
    {"step": 2, "epoch": 1.0, "loss": 2.0, "cpu_percent": 70.0, "ram_percent": 40.0, "peak_memory_gb": 3.0},
    {"step": 2, "epoch": 1.0, "eval_loss": 2.5},
    {"step": 3, "epoch": 1.5, "loss": 1.0, "cpu_percent": 10.0, "ram_percent": 10.0, "peak_memory_gb": 2.0},
    {"step": 4, "epoch": 2.0, "loss": 0.5, "cpu_percent": 20.0, "ram_percent": 20.0, "peak_memory_gb": 2.0},
    {"step": 4, "epoch": 2.0, "eval_loss": 3.0},
    {"step": 5, "epoch": 2.5, "loss": 0.1, "cpu_percent": 20.0, "ram_percent": 20.0, "peak_memory_gb": 2.0},
]


def test_the_published_keys_contain_means_of_epochs(tmp_path: Path):
    (tmp_path / EPOCHS / "epoch_02_20260102_030405").mkdir(parents=True)
    log = published_log({"lr": 2e-5}, ROWS, tmp_path)
    assert list(log) == ["train_losses", "val_losses", "best_val_loss", "parameters", "epoch_details"]
    assert log["train_losses"] == [3.0, 0.75] and log["val_losses"] == [2.5, 3.0] and log["best_val_loss"] == 2.5
    assert log["parameters"] == {"lr": 2e-5}
    assert log["epoch_details"][0] == {
        **dict(epoch=1, train_loss=3.0, val_loss=2.5, cpu_usage_avg=60.0, ram_usage_avg=35.0, gpu_mem_peak=3.0),
        "checkpoint_path": None,
    }
    assert log["epoch_details"][1]["checkpoint_path"] == f"{EPOCHS}/epoch_02_20260102_030405"
    json.dumps(log, allow_nan=False)


def test_a_run_without_validation_has_no_best(tmp_path: Path):
    log = published_log({}, [row for row in ROWS if "eval_loss" not in row], tmp_path)
    assert log["val_losses"] == [None, None] and log["best_val_loss"] is None
    assert published_log({}, [], tmp_path)["train_losses"] == []
