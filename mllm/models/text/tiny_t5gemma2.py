"""Tiny T5Gemma 2, an encoder-decoder that reads images."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, T5Gemma2Config, T5Gemma2ForConditionalGeneration

from mllm.tiny.parts import GEMMA_TEXT, VISION, gemma3_processor, new, padded_rows, random_model


def t5gemma2(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return T5Gemma 2: SigLIP at 112 pixels (16 tokens an image) in the encoder, pretrained only, no chat template."""
    tower = {"model_type": "siglip_vision_model", **VISION, "image_size": 112, "vision_use_head": False, **vision}
    tokens = (tower["image_size"] // tower["patch_size"] // 2) ** 2
    processor = gemma3_processor(tower["image_size"], tokens)
    tokenizer: Any = processor.tokenizer
    values = {
        **GEMMA_TEXT,
        "vocab_size": padded_rows(len(tokenizer)),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **text,
    }
    ids = dict(
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    config = new(
        T5Gemma2Config,
        encoder={"text_config": values, "vision_config": tower, "mm_tokens_per_image": tokens, **ids},
        decoder=values,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        **{name: values[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    return random_model(T5Gemma2ForConditionalGeneration, config, seed), processor
