"""Tiny MedGemma."""

from __future__ import annotations

from typing import Any

from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from mllm.tiny import templates
from mllm.tiny.parts import GEMMA_TEXT, VISION, gemma3_processor, new, padded_rows, random_model

TOKENS = 256
"""Number of tokens of an image."""


def medgemma(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return Gemma 3 like MedGemma: SigLIP at 896 pixels, 256 tokens an image, sliding and full attention."""
    tower = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False, **vision}
    processor = gemma3_processor(tower["image_size"], TOKENS, templates.GEMMA3)
    tokenizer: Any = processor.tokenizer
    config = new(
        Gemma3Config,
        text_config={
            **GEMMA_TEXT,
            "vocab_size": padded_rows(len(tokenizer)),
            "sliding_window": 512,
            **text,
        },
        vision_config=tower,
        mm_tokens_per_image=TOKENS,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    return random_model(Gemma3ForConditionalGeneration, config, seed), processor
