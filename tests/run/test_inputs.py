"""Tests of `mllm.run.inputs`: a resume recognizes data, weights and processes that have changed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllm.errors import ConfigError
from mllm.pipeline.finetune import main
from mllm.run.inputs import Inputs, check_inputs, write_inputs
from mllm.tiny.adapter import write_tiny_adapter
from mllm.tiny.checkpoints import ensure_tiny

BEGAN = Inputs(10, "a", "b", 0, samples_per_update=4, drops_last=False, processes=2, weights={"model": "c"})
ROWS = """
data_args = dict(train=dict(_delete_=True, type="VQADataset", data_path="rows.jsonl", image_folder="pictures"),
                 validation=None, test=None)
training_args.update(max_steps=1, warmup_steps=0)
"""


def test_unchanged_rows_continue_and_changed_ones_are_refused(write_config, write_rows):
    write_rows()
    config = write_config(ROWS)
    assert main([config]) == 0
    Path("moved").mkdir()
    shutil.move("rows.jsonl", "moved/table.jsonl")
    moved = ["--cfg-options", "data_args.train.data_path=moved/table.jsonl", "training_args.max_steps=2"]
    assert main([config, "--resume", *moved]) == 0
    assert Path("exp/run/latest/checkpoint-2").is_dir()

    write_rows({"image": "0.png", "question": "Why?", "answer": "So.", "patient": "new"})
    with pytest.raises(ConfigError, match=r"--resume: the training split has 5 samples, but the run began with 4, so"):
        main([config, "--resume"])
    write_rows()
    Path("rows.jsonl").write_text(Path("rows.jsonl").read_text().replace("A scan.", "No scan.", 1))
    with pytest.raises(ConfigError, match="the 4 samples of the training split are not those that the run began with"):
        main([config, "--resume"])
    write_rows()
    former = Path("pictures/1.png").stat().st_size
    shutil.copy("pictures/2.png", "pictures/1.png")
    assert Path("pictures/1.png").stat().st_size == former
    with pytest.raises(ConfigError, match="are not those that the run began with"):
        main([config, "--resume"])


def test_a_starting_adapter_that_was_trained_again_is_refused(write_config, write_rows):
    write_rows()
    write_tiny_adapter(ensure_tiny("medgemma", Path("ckpt")), "start")
    config = write_config(ROWS + "model_args.update(adapter_path='start', lora_r=None)")
    assert main([config]) == 0
    weights = Path("start/adapter_model.safetensors")
    tensors = {name: tensor + torch.rand_like(tensor) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="the weights in model_args.adapter_path have changed since the run began"):
        main([config, "--resume"])


def test_the_number_of_processes_may_change_if_updates_keep_their_samples(tmp_path, caplog):
    write_inputs(tmp_path, BEGAN)
    check_inputs(tmp_path, BEGAN, compares_losses=False)
    assert not caplog.messages
    check_inputs(tmp_path, replace(BEGAN, processes=1), compares_losses=False)
    assert "continues with 1 instead of 2 processes" in caplog.text
    with pytest.raises(
        ConfigError, match="an update has 8 samples on 4 processes, but 4 on 2 processes in the run so"
    ) as error:
        check_inputs(tmp_path, replace(BEGAN, processes=4, samples_per_update=8), compares_losses=False)
    assert "gradient_accumulation_steps with the product 1, or start it with 2 processes" in str(error.value)
    with pytest.raises(ConfigError, match="so far: start it with 2 processes, or start a new run without --resume"):
        check_inputs(tmp_path, replace(BEGAN, processes=3, samples_per_update=6), compares_losses=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(order=1), "the seed of the order of the samples is 1, but the run began with 0"),
        (dict(drops_last=True), "training_args.dataloader_drop_last is True, was False"),
        (dict(weights={"model": "d"}), "the weights in model have changed"),
    ],
)
def test_other_changes_of_the_order_or_the_weights_are_refused(tmp_path, change, message):
    write_inputs(tmp_path, BEGAN)
    with pytest.raises(ConfigError, match=message):
        check_inputs(tmp_path, replace(BEGAN, **change), compares_losses=False)


def test_another_validation_split_is_refused_if_its_losses_are_compared(tmp_path):
    write_inputs(tmp_path, BEGAN)
    check_inputs(tmp_path, BEGAN, compares_losses=True)
    with pytest.raises(ConfigError, match="the validation split is not that which the run began with, and load_best_"):
        check_inputs(tmp_path, replace(BEGAN, validation="other"), compares_losses=True)


def test_changes_that_keep_the_updates_are_logged(tmp_path, caplog):
    write_inputs(tmp_path, BEGAN)
    check_inputs(tmp_path, replace(BEGAN, validation="other"), compares_losses=False)
    assert "the validation split has changed" in caplog.text
    (tmp_path / "inputs.json").unlink()
    check_inputs(tmp_path, BEGAN, compares_losses=False)
    assert "changes of the data cannot be detected" in caplog.text
