"""What a run of a seeing student says of the machine, and why it chose what it chose."""

import logging
from pathlib import Path

import pytest

from mllm.config.hardware import Hardware
from mllm.config.schema import DataArgs, ModelArgs, RunConfig
from mllm.run.phases import choices, conduit, reservoir

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
A100 = Hardware("cuda", "NVIDIA A100", (8, 0), 40 << 30, 1, 64 << 30, 8, "bf16")
REPORT = {"python": "3.11.7", "packages": {"torch": "2.15.0"}, "git": {"commit": None}}


def _config(**options) -> RunConfig:
    args = ModelArgs("gemma3n-student", "a/b", part="vision", **options)
    return RunConfig(args, DataArgs(), training_args={}, objectives={}, name="run", path=Path("run.py"))


def test_the_environment_is_a_table_in_log_and_folder(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        reservoir(REPORT, A100, tmp_path)
    table = (tmp_path / "environment.md").read_text()
    for line in (
        "| torch | 2.15.0 |",
        "| device | NVIDIA A100 |",
        "| memory of the device | 42.9 GB |",
        "| commit | none |",
    ):
        assert line in table
    assert "Reservoir: what there is" in caplog.text and "torch                  2.15.0" in caplog.text


@pytest.mark.parametrize(
    "hardware, options, lines",
    [
        (CPU, {}, ["device: a processor, because no GPU was found", "precision: fp32, because half precision is slow on a CPU",  # noqa: E501
                   "quantization: none, because the vision tower has convolutions and no Linear layer"]),
        (A100, {}, ["device: NVIDIA A100, because it is the first card that PyTorch sees",
                    "precision: bf16, because the config asks for it and the card has it"]),
        (A100, {"load_in_4bit": True}, ["quantization: 4 bits, as the config asks"]),
    ],
)  # fmt: skip
def test_every_choice_has_its_reason(hardware: Hardware, options, lines: list[str]):
    told = choices(_config(**options), hardware)
    assert [line for line in lines if line not in told] == []


def test_they_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        conduit(_config(), CPU)
    assert "Conduit: what flows in, and how\n  device: a processor" in caplog.text
