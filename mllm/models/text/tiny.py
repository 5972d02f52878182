"""Tiny VaultGemma and T5Gemma."""

from __future__ import annotations

from typing import Any

from transformers import (
    PreTrainedModel,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaModuleConfig,
    VaultGemmaConfig,
    VaultGemmaForCausalLM,
)

from mllm.tiny import templates
from mllm.tiny.parts import GEMMA_TEXT, gemma_tokenizer, new, padded_rows, random_model


def vaultgemma(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return VaultGemma: Gemma 2 without norms after its layers, pretrained only and without a chat template."""
    tokenizer = gemma_tokenizer()
    values = {
        **GEMMA_TEXT,
        "vocab_size": padded_rows(len(tokenizer)),
        **text,
    }
    config = new(
        VaultGemmaConfig,
        **values,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return random_model(VaultGemmaForCausalLM, config, seed), tokenizer


def t5gemma(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return T5Gemma: encoder and decoder like Gemma 2, with softcapped attention and logits."""
    tokenizer = gemma_tokenizer()
    tokenizer.chat_template = templates.GEMMA3
    values = {
        **GEMMA_TEXT,
        "vocab_size": padded_rows(len(tokenizer)),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        "pad_token_id": tokenizer.pad_token_id,
        **text,
    }
    config = new(
        T5GemmaConfig,
        encoder=new(T5GemmaModuleConfig, **values),
        decoder=new(T5GemmaModuleConfig, **values, cross_attention_hidden_size=values["hidden_size"]),
        vocab_size=values["vocab_size"],
    )
    return random_model(T5GemmaForConditionalGeneration, config, seed), tokenizer
