"""The tiny LLaVAs, and the tiny LLaMA and CLIP that one can be composed of."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)

from mllm.models.shikra.conversation import vicuna_template
from mllm.tiny import templates
from mllm.tiny.parts import TEXT, VISION, Family, filled, make_special, new, padded
from mllm.tiny.vocabulary import train_pieces

LLAMA_TOKENS = ["<unk>", "<s>", "</s>"]
LLAVA_TOKENS = [*LLAMA_TOKENS, "<pad>", "<image>"]
CLIP_112 = {**VISION, "image_size": 112, "projection_dim": 64}
"""A tower of 112 pixels: 64 tokens an image."""


def _llava(
    seed: int, text: dict[str, Any], vision: dict[str, Any], template: str = templates.LLAVA
) -> tuple[PreTrainedModel, Any]:
    """LLaVA 1.5: CLIP at 112 pixels (64 tokens an image), a projector of two layers, LLaMA."""
    vocabulary, merges = train_pieces(LLAVA_TOKENS)
    tokenizer = new(
        LlamaTokenizer,
        vocab=vocabulary,
        merges=merges,
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
        add_bos_token=True,
    )
    make_special(tokenizer, LLAVA_TOKENS)
    config = new(
        LlavaConfig,
        text_config={"model_type": "llama", **TEXT, "vocab_size": padded(len(tokenizer)), **text},
        vision_config={"model_type": "clip_vision_model", **CLIP_112, **vision},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = LlavaProcessor(
        _images(config.vision_config.image_size),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return filled(LlavaForConditionalGeneration, config, seed), processor


def _llama(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """A LLaMA as TinyLlama and Vicuna are: text only, as many rows as tokens, no padding token."""
    vocabulary, merges = train_pieces(LLAMA_TOKENS)
    tokenizer = new(LlamaTokenizer, vocab=vocabulary, merges=merges, add_bos_token=True)
    make_special(tokenizer, LLAMA_TOKENS)
    config = new(
        LlamaConfig,
        **{**TEXT, "vocab_size": len(tokenizer), **text},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return filled(LlamaForCausalLM, config, seed), tokenizer


def _clip(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """A whole CLIP of 112 pixels, its text tower too, as it is published."""
    small = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=128)
    small |= dict(bos_token_id=0, eos_token_id=1)
    config = new(CLIPConfig, text_config={**small, **text}, vision_config={**CLIP_112, **vision}, projection_dim=64)
    return filled(CLIPModel, config, seed), _images(config.vision_config.image_size)


def _images(side: int) -> CLIPImageProcessor:
    """CLIP's: the shorter side is resized, and the middle cut out."""
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


LLAVA_FAMILIES: dict[str, Family] = {
    "llava": _llava,
    "shikra": partial(_llava, template=vicuna_template()),
    "llama": _llama,
    "clip": _clip,
}
