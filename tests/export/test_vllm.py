"""Tests of the check of adapters against vLLM's LoRA loader."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig

from mllm.export.vllm import vllm_obstacles

LAYER = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
KEYS = [f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"]
LANGUAGE = "model.language_model"


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": r".*\.q_proj"}])
def test_plain_lora_is_supported(options: dict[str, Any]) -> None:
    assert vllm_obstacles(LoraConfig(r=16, **options), KEYS, LANGUAGE, has_other_weights=False) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"alpha_pattern": {"q_proj": 3}}, "one scaling"),
        ({"rank_pattern": {"q_proj": 3}}, "one scaling"),
        ({"r": 1024}, "rank 1024"),
        ({"bias": "all"}, "biases"),
    ],
)
def test_unsupported_configs(options: dict[str, Any], reason: str) -> None:
    (obstacle,) = vllm_obstacles(LoraConfig(**({"r": 8} | options)), KEYS, LANGUAGE, has_other_weights=False)
    assert reason in obstacle


def test_unsupported_layers() -> None:
    vision = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    embedding = "base_model.model.model.language_model.embed_tokens.lora_embedding_A"
    assert "vision_tower" in vllm_obstacles(LoraConfig(), [*KEYS, vision], LANGUAGE, has_other_weights=False)[0]
    assert "not a Linear" in vllm_obstacles(LoraConfig(), [*KEYS, embedding], LANGUAGE, has_other_weights=False)[0]
    assert "heads.safetensors" in vllm_obstacles(LoraConfig(), KEYS, LANGUAGE, has_other_weights=True)[0]
