"""Runs on text through `finetune.py`: packed or not the same, and stopped when they learn no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllm.pipeline.finetune import main

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_text.py", "{checkout}/config/_base_/datasets/first_aid.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(load_in_4bit=False, lora_r=4, max_length=200)
data_args = dict(train=dict(data_path="train.jsonl"),
                 validation=dict(_delete_=True, type="TextQADataset", data_path="validation.jsonl"))
training_args = dict(max_steps=3, per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=1e-3,
                     lr_scheduler_type="constant", warmup_steps=0, eval_strategy="steps", eval_steps=1, optim="sgd",
                     save_strategy="steps", save_steps=1, save_total_limit=None, dataloader_num_workers=0,
                     gradient_checkpointing=True)
{more}
"""


def write_run(name: str, more: str = "") -> str:
    """Sixteen questions of unlike length and four others, and a config about them."""
    Path(f"{name}.py").write_text(TEXT.format(checkout=CHECKOUT, more=more))
    for split, numbers in (("train", range(16)), ("validation", range(16, 20))):
        rows = [
            {"question": f"What is {n}? " * (1 + n % 5), "answer": f"It is {n} and no more. " * (1 + n % 3)}
            for n in numbers
        ]
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{name}.py"


def log_of(run: str, key: str) -> list[float]:
    rows = json.loads((Path("exp") / run / "latest" / "training_log.json").read_text())["rows"]
    return [row[key] for row in rows if key in row]


def adapter_of(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path("exp") / run / "latest" / "adapter" / "adapter_model.safetensors")


def test_a_packed_run_makes_the_same_updates_with_less_padding(folder):
    assert main([write_run("plain"), "--tiny"]) == 0
    assert main([write_run("packed", "data_args.update(packing=True)"), "--tiny"]) == 0
    for key in ("loss", "eval_loss", "grad_norm"):
        assert log_of("packed", key) == pytest.approx(log_of("plain", key), rel=1e-4), key
    for name, tensor in adapter_of("plain").items():
        torch.testing.assert_close(adapter_of("packed")[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert any(tensor.any() for name, tensor in adapter_of("plain").items() if "lora_B" in name)
    assert max(log_of("packed", "padding_share")) < min(log_of("plain", "padding_share"))
