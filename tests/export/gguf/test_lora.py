"""A LoRA does in llama.cpp what it does in PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from mllm.export.gguf.lora import export_adapter
from mllm.export.gguf.model import export_model
from tests.export.gguf.conftest import as_llama_cpp, random_ids, reference

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_lora(base: Path, folder: Path, **options: Any) -> Path:
    """A LoRA of every layer of the model in `base`, whose B matrices are filled."""
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LAYERS, **options})
    adapted = get_peft_model(model, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name or "lora_embedding_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", dict(use_rslora=True, rank_pattern={"q_proj": 8}, alpha_pattern={"up_proj": 3})),
        ("gemma3", {}),
        ("gemma3n", dict(target_modules=["q_proj", "o_proj", "up_proj"])),
    ],
)
def test_logits_equal_those_of_peft(
    checkpoints: Callable[[str], Path], runtime: Callable[..., Any], family: str, options: Any, tmp_path: Path
) -> None:
    base = checkpoints(family)
    adapter = write_lora(base, tmp_path / "adapter", **options)
    whole = export_model(base, tmp_path / "model.gguf", "f32")
    lora = export_adapter(adapter, str(base), tmp_path / "lora.gguf", "f32")
    model: Any = as_llama_cpp(AutoModelForCausalLM.from_pretrained(base))
    plain = reference(model, random_ids())
    adapted = reference(PeftModel.from_pretrained(model, adapter), random_ids())
    before = runtime(whole).logits(random_ids())
    after = runtime(whole, lora).logits(random_ids())
    assert np.abs(adapted - plain).max() > 0.05
    print("LORA", family, np.abs(after - adapted).max(), np.abs(before - plain).max(), np.abs(adapted - plain).max())
    assert np.abs(after - adapted).max() < (1e-4 if family == "llama" else 2e-3)
