"""Options of loading and LoRA are passed to transformers and PEFT under their names."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.adapters.attach import attach_adapter
from mllm.models.backbone.loading import load_model
from mllm.models.builder.build_options import load_options, lora_options

T4 = Hardware("cuda", "Tesla T4", (7, 5), 16 << 30, 1, 32 << 30, 4, "fp16")


@pytest.mark.parametrize("bits", [4, 8, None])
def test_load_options_follow_from_the_config(tmp_path: Path, bits: int | None):
    LlamaConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    args = ModelArgs("causal-lm", str(tmp_path), attn_implementation="eager")
    if bits:
        args = replace(args, **{f"load_in_{bits}bit": True})
    options = load_options(args, T4, keep=["lm_head"])
    assert set(options) <= set(inspect.signature(load_model).parameters)
    assert (options["precision"], options["device"], options["attn_implementation"]) == ("fp16", "cuda", "eager")
    assert options["trust_remote_code"] is False
    stored = options["quantization_config"]
    assert (stored is None) == (bits is None)
    if stored is not None:
        assert (stored.load_in_4bit, stored.load_in_8bit) == (bits == 4, bits == 8)
        assert stored.llm_int8_skip_modules == ["lm_head"]


def test_lora_options_follow_from_the_config():
    args = ModelArgs("causal-lm", "a/b", lora_r=3, lora_alpha=5, lora_dropout=0.1, lora_target="all", use_dora=True)
    options = lora_options(args)
    assert options == dict(
        lora_r=3, lora_alpha=5, lora_dropout=0.1, lora_target="all", use_rslora=False, use_dora=True, merge_lora=False
    )
    assert set(options) <= set(inspect.signature(attach_adapter).parameters)
