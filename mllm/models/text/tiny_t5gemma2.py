"""Tiny T5Gemma 2, an encoder-decoder that reads images."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
    PreTrainedModel,
    T5Gemma2Config,
    T5Gemma2ForConditionalGeneration,
)

from mllm.tiny.parts import (
    GEMMA_IMAGE_TOKENS,
    GEMMA_TOKENS,
    TEXT,
    VISION,
    add_special_tokens,
    new,
    padded_rows,
    random_model,
)
from mllm.tiny.vocabulary import train_pieces


def t5gemma2(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return T5Gemma 2: SigLIP at 112 pixels (16 tokens an image) in the encoder, pretrained only, no chat template."""
    names = GEMMA_TOKENS + list(GEMMA_IMAGE_TOKENS.values())
    vocabulary, merges = train_pieces(names)
    tokenizer = new(
        GemmaTokenizer, vocab=vocabulary, merges=merges, extra_special_tokens=GEMMA_IMAGE_TOKENS, add_bos_token=True
    )
    add_special_tokens(tokenizer, names)
    values = {
        **TEXT,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "vocab_size": padded_rows(len(tokenizer)),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **text,
    }
    tower = {"model_type": "siglip_vision_model", **VISION, "image_size": 112, "vision_use_head": False, **vision}
    side, tokens = tower["image_size"], (tower["image_size"] // tower["patch_size"] // 2) ** 2
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
    images = Gemma3ImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    processor = Gemma3Processor(images, tokenizer, image_seq_length=tokens)
    return random_model(T5Gemma2ForConditionalGeneration, config, seed), processor
