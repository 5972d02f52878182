"""Gemma 3ns that are deep and small: all 35 layers of E4B, 64 wide, with the towers of E4B in miniature or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3nAudioConfig, Gemma3nConfig, Gemma3nForConditionalGeneration, Gemma3nVisionConfig

from mllm.testing.tiny import write_tiny
from mllm.testing.tiny_parts import filled

DEEP: dict[str, Any] = {
    "num_hidden_layers": 35,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_size_per_layer_input": 8,
    "layer_types": None,  # E4B's own: four of sliding attention, one of full attention, and so on
    "activation_sparsity_pattern": None,  # E4B's own: the first ten layers
    "num_kv_shared_layers": 15,
    "sliding_window": 8,
}
"""E4B's layers and what they share; the prompts of the tests are longer than the window."""


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only checkpoint in one file."""
    return write_tiny("gemma3n", tmp_path_factory.mktemp("deep") / "text", text=DEEP)


@pytest.fixture(scope="session")
def deep_with_towers(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with vision and audio, in many files."""
    text = Gemma3nForConditionalGeneration.config_class.sub_configs["text_config"].from_pretrained(deep)
    config = Gemma3nConfig(
        text_config=text,
        vision_config=Gemma3nVisionConfig(architecture="test_efficientnet", hidden_size=64),
        audio_config=Gemma3nAudioConfig(hidden_size=64, conf_num_hidden_layers=2, conf_num_attention_heads=2),
    )
    folder = tmp_path_factory.mktemp("deep") / "towers"
    model = filled(Gemma3nForConditionalGeneration, config, seed=1)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="300KB")
    return folder
