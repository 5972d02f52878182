"""Tiny adapters: they change outputs, and the layouts of older transformers carry the names that those wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mllm.tiny.adapter import write_tiny_adapter


def test_peft_loads_the_adapter_and_it_changes_the_output(tiny_medgemma: Path, tmp_path: Path) -> None:
    folder = write_tiny_adapter(tiny_medgemma, tmp_path / "adapter", rank=2, alpha=6)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 6)
    assert config["base_model_name_or_path"] == str(tiny_medgemma)
    model = AutoModelForImageTextToText.from_pretrained(tiny_medgemma)
    ids = torch.tensor([[2, 300, 301, 302]])
    with torch.no_grad():
        plain = model(ids).logits
        adapted = PeftModel.from_pretrained(model, folder)(ids).logits
    assert (plain - adapted).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("layout", "language", "vision"),
    [
        ("current", "model.language_model.layers.0.", "model.vision_tower.encoder.layers.0."),
        ("4.52", "model.language_model.layers.0.", "model.vision_tower.vision_model.encoder.layers.0."),
        ("4.50", "language_model.model.layers.0.", "vision_tower.vision_model.encoder.layers.0."),
    ],
)
def test_layouts(tiny_medgemma: Path, tmp_path: Path, layout: str, language: str, vision: str) -> None:
    folder = write_tiny_adapter(tiny_medgemma, tmp_path / "adapter", layout=layout)
    tensors = load_file(folder / "adapter_model.safetensors")
    for prefix in (language, vision):
        name = f"base_model.model.{prefix}self_attn.q_proj.lora_B.weight"
        assert tensors[name].abs().sum() > 0
    # 3 language layers with 7 targets, 2 vision layers with q, k and v; A and B each
    assert len(tensors) == 2 * (3 * 7 + 2 * 3)
