"""Tiny checkpoints of families of text: decoders, and encoder-decoders."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    LlamaTokenizer,
)

from family_checkpoints.more_text import more_decoder_values, more_encoder_decoder_values
from family_checkpoints.parts import SIZES, byte_tokenizer, chat, ids_of, piece_tokenizer
from mllm.tiny.parts import random_model

SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = dict(
    layer_types=["linear_attention", "full_attention"],
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
)
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_5_text": {"head_dim": 32, **LINEAR},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, **SLIDING},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, **SLIDING},
    "phi3": {},
    "olmo2": {},
    "granite": {"logits_scaling": 8.0},
    "smollm3": {},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "gpt2": {},
    "gpt_neox": {"rotary_pct": 0.5},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 1},
    "bloom": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "modernbert-decoder": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "phimoe": {"num_local_experts": 2, "num_experts_per_tok": 2},
    "bert": {"is_decoder": False},
}
"""Architecture of AutoModelForCausalLM -> values of its config besides `SIZES`."""
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": dict(d_model=64, d_ff=128, d_kv=32, num_layers=2, num_heads=2),
    "mt5": dict(d_model=64, d_ff=128, d_kv=32, num_layers=2, num_heads=2, tie_word_embeddings=False),
    "bart": {},
    "mbart": {},
    "pegasus": {},
    "led": dict(attention_window=16),
}
"""Architecture of AutoModelForSeq2SeqLM -> values of its config."""
HALVES = dict(
    d_model=64,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=128,
    decoder_ffn_dim=128,
    max_position_embeddings=512,
)
"""Dimensions of BART and its relatives."""


def decoder(family: str) -> tuple[Any, Any]:
    """Return a decoder with a chat template."""
    values = {**SIZES, **DECODERS[family]} if family in DECODERS else more_decoder_values(family)
    gemma = family.startswith("gemma")
    tokenizer: Any
    if gemma or family in ("llama", "mistral", "phi3"):
        tokenizer = piece_tokenizer(*(() if gemma else (LlamaTokenizer,)))
        tokenizer.chat_template = "{{ bos_token }}" + chat(end="<eos>").replace("<|im_start|>", "")
    else:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = chat()
    ids = ids_of(tokenizer)
    if family == "inkling2_text":
        ids["unpadded_vocab_size"] = ids["vocab_size"]
    config = AutoConfig.for_model(family, **{**ids, **values})
    return random_model(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, seed=0), tokenizer


def encoder_decoder(family: str) -> tuple[Any, Any]:
    """Return an encoder-decoder without a chat template."""
    tokenizer = piece_tokenizer()
    ids = ids_of(tokenizer)
    ids["decoder_start_token_id"] = ids["pad_token_id"]
    if family not in ENCODER_DECODERS:
        values = more_encoder_decoder_values(family)
    else:
        values = {**({} if "d_ff" in ENCODER_DECODERS[family] else HALVES), **ENCODER_DECODERS[family]}
    if family == "marian":
        ids["decoder_vocab_size"] = ids["vocab_size"]
    if family == "encoder-decoder":
        values = {half: {**ids, **half_values} for half, half_values in values.items()}
    config = AutoConfig.for_model(family, **{**ids, **values})
    return random_model(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)], config, seed=0), tokenizer


def blt() -> tuple[Any, Any]:
    """Return BLT, which reads bytes in groups that a part of it chooses."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat()
    ids, sizes = ids_of(tokenizer), {**SIZES, "num_key_value_heads": 2}
    half = {**sizes, "vocab_size": ids["vocab_size"], "hidden_size_global": 64}
    parts = dict(patcher_config=half, encoder_config=half, decoder_config=half, global_config=sizes)
    config = AutoConfig.for_model(
        "blt", **ids, **parts, encoder_hash_byte_group_size=[3], encoder_hash_byte_group_vocab=64
    )
    return random_model(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, seed=0), tokenizer


def config_alone(family: str, **values: Any) -> tuple[Any, Any]:
    """Return the config of an architecture that is refused before its weights are read, and a tokenizer.

    The config has the default values, except for `values`.
    """
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat()
    return AutoConfig.for_model(family, **values), tokenizer
