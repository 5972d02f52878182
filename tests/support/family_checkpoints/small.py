"""Small dimensions for the configs of any architecture of text, under the names that transformers uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NAMES: Mapping[int, tuple[str, ...]] = {
    1: ("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_dense_layers", "num_global_layers"),
    2: (
        *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"),
        *("num_encoder_layers", "num_decoder_layers", "num_attention_heads", "num_heads", "n_head", "n_heads"),
        *("encoder_attention_heads", "decoder_attention_heads", "num_encoder_attention_heads"),
        *("num_decoder_attention_heads", "num_key_value_heads", "num_kv_heads", "swa_num_attention_heads"),
        *("swa_num_key_value_heads", "linear_num_key_heads", "index_n_heads"),
        # All experts are chosen, so that a small step of the weights changes the loss smoothly.
        *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok"),
        *("moe_topk", "moe_k"),
    ),
    4: ("linear_num_value_heads", "mamba_n_heads", "mamba_num_heads"),
    8: ("time_step_rank",),
    16: (
        *("qk_rope_head_dim", "sliding_window", "linear_key_head_dim", "linear_value_head_dim", "state_size"),
        *("mamba_d_state", "ssm_state_size", "attention_window", "block_size", "local_attention"),
        "hidden_size_per_layer_input",
    ),
    32: (
        *("head_dim", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "d_kv"),
        *("mamba_d_head", "mamba_head_dim", "attention_head_dim", "swa_head_dim", "swa_v_head_dim"),
    ),
    64: (
        *("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim", "lru_width"),
        *("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"),
        *("moe_shared_expert_intermediate_size", "shared_intermediate_size"),
    ),
    128: (
        *("intermediate_size", "ffn_dim", "ffn_hidden_size", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"),
        "mamba_d_ssm",
    ),
    512: ("max_position_embeddings", "index_topk"),
    1280: ("vocab_size_per_layer_input",),
}
"""Value -> names of the keys that have it."""
OPTIONAL = ("intermediate_size", "n_inner", "head_dim")
"""Keys that are set even if their default is None."""
LAYERS = ("layer_types", "mlp_layer_types")
"""Keys with the kind of each layer."""


def small_values(architecture: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the config of an architecture: small dimensions, one layer of each kind, and `changes`."""
    defaults = CONFIG_MAPPING[architecture]().to_dict()
    values: dict[str, Any] = {
        name: value
        for value, names in NAMES.items()
        for name in names
        if name in defaults and (type(defaults[name]) is int or name in OPTIONAL)
    }
    kinds = {name: list(dict.fromkeys(defaults.get(name) or ())) for name in LAYERS if name not in changes}
    count = max(2, *(len(kind) for kind in kinds.values()), 0)
    if any(kinds.values()):
        values |= {name: (kind * count)[:count] for name, kind in kinds.items() if kind}
        values |= {name: count for name in ("num_hidden_layers", "num_layers", "n_layer") if name in values}
    return {**values, **changes}
