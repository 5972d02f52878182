"""Tiny PaliGemma 2, and PaliGemma with Gemma as its language model."""

from __future__ import annotations

from typing import Any

from transformers import (
    GemmaTokenizer,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    SiglipImageProcessor,
)

from mllm.tiny.parts import GEMMA_TEXT, TEXT, VISION, add_special_tokens, new, padded_rows, random_model
from mllm.tiny.vocabulary import train_pieces

PALIGEMMA_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<image>"]


def paligemma2(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return PaliGemma 2: SigLIP at 112 pixels (64 tokens an image), Gemma 2, no chat template."""
    return paligemma(seed, {"model_type": "gemma2", **GEMMA_TEXT, **text}, vision)


def paligemma(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return PaliGemma; its language model is Gemma if `text` names no other."""
    vocabulary, merges = train_pieces(PALIGEMMA_TOKENS)
    tokenizer = new(GemmaTokenizer, vocab=vocabulary, merges=merges)
    add_special_tokens(tokenizer, PALIGEMMA_TOKENS)
    tower = {**VISION, "image_size": 112, **vision}
    side = tower["image_size"]
    images: Any = SiglipImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    images.image_seq_length = (side // tower["patch_size"]) ** 2
    processor = PaliGemmaProcessor(images, tokenizer)  # adds the tokens of places and masks
    width = {**TEXT, **text}["hidden_size"]
    config = new(
        PaliGemmaConfig,
        text_config={
            "model_type": "gemma",
            **TEXT,
            "head_dim": 32,
            "vocab_size": padded_rows(len(tokenizer)),
            **text,
        },
        vision_config={"model_type": "siglip_vision_model", **tower, "vision_use_head": False},
        image_token_index=processor.image_token_id,
        projection_dim=width,
        hidden_size=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return random_model(PaliGemmaForConditionalGeneration, config, seed), processor
