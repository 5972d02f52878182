"""Fixtures: Gemma 3n with all 35 layers of E4B and width 64, with small towers or without towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Gemma3nForConditionalGeneration

from mllm.tiny.checkpoints import write_tiny

DEEP: dict[str, Any] = {
    "num_hidden_layers": 35,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_size_per_layer_input": 8,
    "layer_types": None,  # as in E4B: repeatedly four layers of sliding attention and one of full attention
    "activation_sparsity_pattern": None,  # as in E4B: the first ten layers
    "num_kv_shared_layers": 15,
    "sliding_window": 8,
}
"""E4B's layers and what they share; the prompts of the tests are longer than the window."""


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only checkpoint in one file."""
    return write_tiny("gemma3n", tmp_path_factory.mktemp("deep") / "text", text=DEEP)


@pytest.fixture(scope="session")
def deep_with_towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 35 layers with vision and audio, in bf16 and in many files."""
    folder = write_tiny("gemma3n-student", tmp_path_factory.mktemp("deep") / "whole", text=DEEP)
    model = Gemma3nForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    model.config.vision_config = AutoConfig.from_pretrained(folder).vision_config  # timm changes its argument
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="500KB")
    return folder
