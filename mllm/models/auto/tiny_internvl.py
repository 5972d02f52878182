"""Tiny InternVL 3."""

from __future__ import annotations

from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedModel,
    Qwen2Tokenizer,
)

from mllm.tiny import templates
from mllm.tiny.parts import TEXT, VISION, add_special_tokens, new, padded_rows, random_model
from mllm.tiny.vocabulary import train_bytes

MEDIA_TOKENS = dict(
    start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
)
INTERNVL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MEDIA_TOKENS.values()]


def internvl(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return InternVL 3: an image is cut into up to 4 tiles of 112 pixels with 16 tokens each, and an overview."""
    vocabulary, merges = train_bytes(INTERNVL_TOKENS)
    tokenizer = new(
        Qwen2Tokenizer,
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=MEDIA_TOKENS,
    )
    add_special_tokens(tokenizer, INTERNVL_TOKENS)
    tower = {**VISION, "image_size": [112, 112], "patch_size": [14, 14], **vision}
    side, patch = tower["image_size"], tower["patch_size"]
    tokens = (side[0] // patch[0] // 2) * (side[1] // patch[1] // 2)  # 2 x 2 patches make a token
    config = new(
        InternVLConfig,
        text_config={
            "model_type": "qwen2",
            **TEXT,
            "vocab_size": padded_rows(len(tokenizer)),
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **text,
        },
        vision_config={"model_type": "internvl_vision", **tower},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    images = GotOcr2ImageProcessor(size={"height": side[0], "width": side[1]}, crop_to_patches=True, max_patches=4)
    processor = InternVLProcessor(
        images,
        tokenizer,
        InternVLVideoProcessor(),
        image_seq_length=tokens,
        chat_template=templates.INTERNVL,
    )
    return random_model(InternVLForConditionalGeneration, config, seed), processor
