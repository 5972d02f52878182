"""Tiny LLaVA with Vicuna's conversation, and a tiny LLaMA and CLIP from which a LLaVA is composed."""

from __future__ import annotations

from typing import Any

from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, LlamaTokenizer, PreTrainedModel

from mllm.models.auto.tiny import CLIP_112, LLAMA_TOKENS, clip_images, llava
from mllm.models.shikra.conversation import vicuna_template
from mllm.tiny.parts import TEXT, add_special_tokens, new, random_model
from mllm.tiny.vocabulary import train_pieces


def shikra(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return LLaVA 1.5 with Vicuna's conversation."""
    return llava(seed, text, vision, template=vicuna_template())


def llama(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return a LLaMA like TinyLlama and Vicuna: text only, as many rows as tokens, no padding token."""
    vocabulary, merges = train_pieces(LLAMA_TOKENS)
    tokenizer = new(LlamaTokenizer, vocab=vocabulary, merges=merges, add_bos_token=True)
    add_special_tokens(tokenizer, LLAMA_TOKENS)
    config = new(
        LlamaConfig,
        **{**TEXT, "vocab_size": len(tokenizer), **text},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return random_model(LlamaForCausalLM, config, seed), tokenizer


def clip(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return a CLIP of 112 pixels with its text tower, as it is published."""
    small = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=128)
    small |= dict(bos_token_id=0, eos_token_id=1)
    config = new(CLIPConfig, text_config={**small, **text}, vision_config={**CLIP_112, **vision}, projection_dim=64)
    return random_model(CLIPModel, config, seed), clip_images(config.vision_config.image_size)
