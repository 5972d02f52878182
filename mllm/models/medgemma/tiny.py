"""Tiny MedGemma."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
    PreTrainedModel,
)

from mllm.tiny import templates
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


def medgemma(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return Gemma 3 like MedGemma: SigLIP at 896 pixels, 256 tokens an image, sliding and full attention."""
    names = GEMMA_TOKENS + list(GEMMA_IMAGE_TOKENS.values())
    vocabulary, merges = train_pieces(names)
    tokenizer = new(
        GemmaTokenizer, vocab=vocabulary, merges=merges, extra_special_tokens=GEMMA_IMAGE_TOKENS, add_bos_token=True
    )
    add_special_tokens(tokenizer, names)
    config = new(
        Gemma3Config,
        text_config={
            **TEXT,
            "vocab_size": padded_rows(len(tokenizer)),
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            **text,
        },
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False, **vision},
        mm_tokens_per_image=256,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    side = config.vision_config.image_size
    images = Gemma3ImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    processor = Gemma3Processor(images, tokenizer, chat_template=templates.GEMMA3, image_seq_length=256)
    return random_model(Gemma3ForConditionalGeneration, config, seed), processor
