"""More families of text, with small dimensions under the names that each config has."""

from __future__ import annotations

from typing import Any

from family_checkpoints.small import small_values

PLAIN = (
    *("afmoe", "apertus", "arcee", "aria_text", "axk2", "beam", "bigbird_pegasus", "biogpt", "bitnet"),
    *("blenderbot", "blenderbot-small", "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm", "deepseek_v32"),
    *("diffllama", "doge", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon_h1", "falcon_mamba"),
    *("flex_olmo", "flint", "gemma", "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe"),
    *("glm4_moe_lite", "glm_moe_dsa", "gpt-sw3", "gpt_bigcode", "gpt_neox_japanese", "gpt_oss", "granite_swa"),
    *("granitemoe", "granitemoe_swa", "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense"),
    *("hunyuan_v1_moe", "hy_v3", "hy_v4", "hyperclovax", "inkling2_text", "inkling_text", "internlm3"),
    *("iquestcoder", "jais2", "jetmoe", "kolibri1", "laguna", "lfm3", "llama4_text", "mamba", "marian"),
    *("mellum", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3"),
    *("mixtral", "moshi", "mpt", "mvp", "nanochat", "olmo", "olmo3", "olmo_hybrid", "olmoe"),
    *("openai-gpt", "persimmon", "phi", "plbart", "qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next"),
    *("rwkv", "seed_oss", "solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm"),
)
"""Architectures of AutoModelForCausalLM that need no further values."""
TWO_WAYS = (
    *("bert-generation", "big_bird", "cpmant", "data2vec-text", "ernie", "megatron-bert", "roberta-prelayernorm"),
    *("roc_bert", "roformer", "xlm", "xlm-roberta-xl"),
)
"""Architectures that attend in both directions with the defaults of their configs."""
EXPERTS: dict[str, Any] = dict(
    n_routed_experts=2, num_experts_per_tok=2, moe_intermediate_size=64, n_group=1, topk_group=1
)
MORE_DECODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys((*PLAIN, *TWO_WAYS, "xmod"), {}),
    **dict.fromkeys(("axk1", "deepseek_v3", "longcat_flash", "youtu"), {"head_dim": 16}),
    **dict.fromkeys(("camembert", "electra", "roberta", "xlm-roberta"), {"is_decoder": True}),
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {**EXPERTS, "head_dim": 16, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots1": {**EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": dict(attn_layer_offset=1, attn_layer_period=2, expert_layer_offset=1, expert_layer_period=2),
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "rembert": {"is_decoder": True, "output_embedding_size": 64, "input_embedding_size": 64},
    "nemotron": {"num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
}
"""Architecture of AutoModelForCausalLM -> values of its config besides the small dimensions."""
MORE_ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bigbird_pegasus", "blenderbot", "blenderbot-small", "fsmt", "mvp", "pegasus_x"), {}),
    **dict.fromkeys(("plbart", "switch_transformers", "umt5"), {}),
    "longt5": {"local_radius": 15},
    # No layer is left out at random.
    "m2m_100": {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
    "nllb-moe": dict(encoder_layerdrop=0.0, decoder_layerdrop=0.0, encoder_sparse_step=2, decoder_sparse_step=2),
}
"""Architecture of AutoModelForSeq2SeqLM -> values of its config besides the small dimensions."""


def more_decoder_values(name: str) -> dict[str, Any]:
    """Return the values of a decoder's config."""
    return small_values(name, MORE_DECODERS[name])


def more_encoder_decoder_values(name: str) -> dict[str, Any]:
    """Return the values of an encoder-decoder's config."""
    return small_values(name, MORE_ENCODER_DECODERS[name])
