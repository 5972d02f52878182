"""Tests of LoRA adapters: llama.cpp and PEFT compute equal logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from mllm.errors import ConfigError
from mllm.export.gguf.lora import export_adapter
from mllm.export.gguf.model import export_model
from mllm.run_files import TRAINED as HEADS
from tests.export.gguf.conftest import as_llama_cpp, random_ids, reference, write_model

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_lora(base: Path, folder: Path, kind: Any = AutoModelForCausalLM, **options: Any) -> Path:
    """Write a LoRA of every layer of the model in `base`, with random B matrices."""
    model = kind.from_pretrained(base)
    settings = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LAYERS, **options})
    adapted = get_peft_model(model, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name or "lora_embedding_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder, save_embedding_layers=False)
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
def test_logits_equal_those_of_peft(runtime: Callable[..., Any], family: str, options: Any, tmp_path: Path) -> None:
    base = write_model(family, tmp_path / "base", damping=0.03)
    adapter = write_lora(base, tmp_path / "adapter", **options)
    whole = export_model(base, tmp_path / "model.gguf", "f32")
    lora = export_adapter(adapter, str(base), tmp_path / "lora.gguf", "f32")
    model: Any = as_llama_cpp(AutoModelForCausalLM.from_pretrained(base))
    plain = reference(model, random_ids())
    adapted = reference(PeftModel.from_pretrained(model, adapter), random_ids())
    assert np.abs(adapted - plain).max() > 0.05
    assert np.abs(runtime(whole, lora).logits(random_ids()) - adapted).max() < 1e-4
    small = export_adapter(adapter, str(base), tmp_path / "small.gguf", "f16")
    assert np.abs(runtime(whole, small).logits(random_ids()) - adapted).max() < 2e-2
    assert small.stat().st_size < lora.stat().st_size


def test_an_adapter_of_gemma_3_with_images(tiny_medgemma: Path, runtime: Callable[..., Any], tmp_path: Path) -> None:
    """The modules have other names than those of a text-only model."""
    language = r"model\.language_model\..*\.(q_proj|down_proj)"
    adapter = write_lora(tiny_medgemma, tmp_path / "adapter", AutoModelForImageTextToText, target_modules=language)
    lora = export_adapter(adapter, str(tiny_medgemma), tmp_path / "lora.gguf", "f32")
    model = as_llama_cpp(AutoModelForImageTextToText.from_pretrained(tiny_medgemma))
    adapted = reference(PeftModel.from_pretrained(model, adapter), random_ids())
    logits = runtime(export_model(tiny_medgemma, tmp_path / "model.gguf", "f32"), lora).logits(random_ids())
    assert np.abs(logits - adapted).max() < 2e-3


def test_the_file_contains_the_metadata(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = write_lora(checkpoints("llama"), tmp_path / "adapter")
    out = export_adapter(adapter, str(checkpoints("llama")), tmp_path / "first-aid.gguf", "f16")
    fields = gguf.GGUFReader(out).fields
    assert fields["general.type"].contents() == "adapter"
    assert fields["adapter.type"].contents() == "lora"
    assert fields["adapter.lora.alpha"].contents() == 6
    assert fields["general.architecture"].contents() == "llama"
    assert fields["general.name"].contents() == "first-aid"
    assert fields["general.base_model.0.name"].contents() == "tiny-llama"
    assert "general.base_model.0.repo_url" not in fields


def test_unsupported_adapters_are_refused(
    checkpoints: Callable[[str], Path], tiny_medgemma: Path, tmp_path: Path
) -> None:
    def refusal(base: Path, kind: str = "f16", model: Any = AutoModelForCausalLM, **options: Any) -> str:
        folder = write_lora(base, tmp_path / str(len(list(tmp_path.iterdir()))), model, **options)
        with pytest.raises(ConfigError) as excinfo:
            export_adapter(folder, str(base), tmp_path / "lora.gguf", kind)
        return str(excinfo.value)

    llama, multimodal = checkpoints("llama"), AutoModelForImageTextToText
    vision = dict(target_modules=r".*vision_tower.*\.q_proj")
    refused = refusal(tiny_medgemma, model=multimodal, **vision)
    assert "llama.cpp applies adapters only to the language model; merge it" in refused
    assert "it adapts lm_head" in refusal(llama, target_modules=["q_proj", "lm_head"])
    assert "lora_magnitude_vector" in refusal(llama, use_dora=True)
    assert "--type q8_0 is not a type of an adapter: choose one of f32, f16, bf16" in refusal(llama, "q8_0")
    with_heads = write_lora(llama, tmp_path / "heads")
    (with_heads / HEADS).touch()
    with pytest.raises(ConfigError, match=r"more than a LoRA was trained \(heads.safetensors\)"):
        export_adapter(with_heads, str(llama), tmp_path / "lora.gguf", "f16")
    assert not (tmp_path / "lora.gguf").exists()
