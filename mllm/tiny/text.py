"""The tiny models of text: Gemma 3n's language model, VaultGemma, and T5Gemma."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GemmaTokenizer,
    PreTrainedModel,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaModuleConfig,
    VaultGemmaConfig,
    VaultGemmaForCausalLM,
)

from mllm.tiny import templates
from mllm.tiny.parts import TEXT, Family, filled, make_special, new, padded
from mllm.tiny.vocabulary import train_pieces

TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]

GEMMA3N_TEXT = {
    **TEXT,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "hidden_size_per_layer_input": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "sliding_window": 64,
    "num_kv_shared_layers": 2,
    "laurel_rank": 8,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
}
"""Gemma 3n's language model: alternating updates, embeddings for each layer, shared keys, softcapped logits."""

GEMMA3N_DEEP = {
    "num_hidden_layers": 21,
    "hidden_size_per_layer_input": 256,
    "layer_types": [("full_attention" if (index + 1) % 5 == 0 else "sliding_attention") for index in range(21)],
    "num_kv_shared_layers": 1,
    "laurel_rank": 64,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 11,
}
"""What llama.cpp takes for granted of every Gemma 3n: twenty layers have keys of their own, ten are sparse."""


def _tokenizer() -> Any:
    """Gemma's tokenizer of text, with its chat template."""
    vocabulary, merges = train_pieces(TOKENS)
    tokenizer = new(GemmaTokenizer, vocab=vocabulary, merges=merges, add_bos_token=True)
    make_special(tokenizer, TOKENS)
    tokenizer.chat_template = templates.GEMMA3
    return tokenizer


def _gemma3n(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Gemma 3n's language model: alternating updates, embeddings for each layer, shared keys, softcapped logits."""
    tokenizer = _tokenizer()
    values = {
        **GEMMA3N_TEXT,
        "vocab_size": padded(len(tokenizer)),
        "vocab_size_per_layer_input": padded(len(tokenizer)),
        **text,
    }
    config = new(
        Gemma3nTextConfig,
        **values,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    return filled(Gemma3nForCausalLM, config, seed), tokenizer


def _gemma3n_deep(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The same model, deep enough to be run by llama.cpp once it is exported.

    Gemma 3n does not divide attention scores: random queries would look at one token, and so many layers of that would
    magnify every rounding until a merge is no longer exact. So they are small.
    """
    model, tokenizer = _gemma3n(seed, {**GEMMA3N_DEEP, **text}, vision)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_norm.weight"):
                parameter.mul_(0.05)
    return model, tokenizer


def _vaultgemma(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """VaultGemma: Gemma 2's kind without norms behind its layers, a pretrained model without a chat template."""
    tokenizer = _tokenizer()
    tokenizer.chat_template = None
    values = {
        **TEXT,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "vocab_size": padded(len(tokenizer)),
        **text,
    }
    config = new(
        VaultGemmaConfig,
        **values,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return filled(VaultGemmaForCausalLM, config, seed), tokenizer


def _t5gemma(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """T5Gemma: an encoder and a decoder of Gemma 2's kind, softcapped attention and logits."""
    tokenizer = _tokenizer()
    values = {
        **TEXT,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "vocab_size": padded(len(tokenizer)),
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
    return filled(T5GemmaForConditionalGeneration, config, seed), tokenizer


TEXT_FAMILIES: dict[str, Family] = {
    "gemma3n": _gemma3n,
    "gemma3n-deep": _gemma3n_deep,
    "vaultgemma": _vaultgemma,
    "t5gemma": _t5gemma,
}
