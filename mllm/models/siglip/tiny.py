"""Tiny MedSigLIP."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, SiglipConfig, SiglipImageProcessor, SiglipModel

from mllm.tiny.parts import VISION, new, random_model


def medsiglip(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return MedSigLIP as it is published: a SigLIP of images and text, of which mllm reads the vision tower."""
    tower = {**VISION, "image_size": 112, "num_hidden_layers": 4, **vision}
    config = new(
        SiglipConfig,
        vision_config=tower,
        text_config={**{key: VISION[key] for key in ("hidden_size", "intermediate_size")}, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "vocab_size": 64, "projection_size": VISION["hidden_size"],
                     "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **text},
    )  # fmt: skip
    side = tower["image_size"]
    images = SiglipImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return random_model(SiglipModel, config, seed), images
