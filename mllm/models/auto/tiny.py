"""Tiny LLaVA and the image processor of CLIP."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPImageProcessor,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)

from mllm.tiny import templates
from mllm.tiny.parts import TEXT, VISION, add_special_tokens, new, padded_rows, random_model
from mllm.tiny.vocabulary import train_pieces

LLAMA_TOKENS = ["<unk>", "<s>", "</s>"]
LLAVA_TOKENS = [*LLAMA_TOKENS, "<pad>", "<image>"]
CLIP_112 = {**VISION, "image_size": 112, "projection_dim": 64}
"""Dimensions of a CLIP tower of 112 pixels: 64 tokens an image."""


def llava(
    seed: int, text: dict[str, Any], vision: dict[str, Any], template: str = templates.LLAVA
) -> tuple[PreTrainedModel, Any]:
    """Return LLaVA 1.5: CLIP at 112 pixels (64 tokens an image), a projector of two layers, LLaMA."""
    vocabulary, merges = train_pieces(LLAVA_TOKENS)
    tokenizer = new(
        LlamaTokenizer,
        vocab=vocabulary,
        merges=merges,
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
        add_bos_token=True,
    )
    add_special_tokens(tokenizer, LLAVA_TOKENS)
    config = new(
        LlavaConfig,
        text_config={"model_type": "llama", **TEXT, "vocab_size": padded_rows(len(tokenizer)), **text},
        vision_config={"model_type": "clip_vision_model", **CLIP_112, **vision},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = LlavaProcessor(
        clip_images(config.vision_config.image_size),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return random_model(LlavaForConditionalGeneration, config, seed), processor


def clip_images(side: int) -> CLIPImageProcessor:
    """Return CLIP's image processor: the shorter side is resized, and the middle is cut out."""
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
