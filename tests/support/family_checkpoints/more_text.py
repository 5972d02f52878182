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
    *("bart", "mbart", "pegasus", "dots3_note_text", "trocr", "prophetnet"),
)
"""Architectures of AutoModelForCausalLM that need no further values."""
TWO_WAYS = (
    *("bert-generation", "big_bird", "cpmant", "data2vec-text", "ernie", "megatron-bert", "roberta-prelayernorm"),
    *("roc_bert", "roformer", "xlm", "xlm-roberta-xl", "xlnet"),
)
"""Architectures that attend in both directions with the defaults of their configs."""
EXPERTS: dict[str, Any] = dict(
    n_routed_experts=2, num_experts_per_tok=2, moe_intermediate_size=64, n_group=1, topk_group=1
)
HYBRID = ["linear_attention", "hybrid", "hybrid"]
MIXERS: dict[str, Any] = dict(n_mamba_heads=4, attention_hidden_size=128, attention_head_dim=64, num_hidden_layers=3)
"""Zamba: two layers with attention share its weights."""
DELTA: dict[str, Any] = dict(
    **dict(head_dim=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=32, kv_lora_rank=32),
    **dict(linear_head_dim=32, linear_num_heads=2),
    **dict(num_experts_per_token=2, num_expert_group=1, topk_group=1, num_shared_experts=1),
)
"""Kimi Delta Attention beside latent attention, with experts."""
ROPE = {"rope_type": "default", "rope_theta": 1e4}
TOWER: dict[str, Any] = dict(hidden_size=64, intermediate_size=128, num_attention_heads=2)
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
    "bailing_hybrid": {**DELTA, "num_nextn_predict_layers": 0},
    "kimi_linear": DELTA,
    "codegen": dict(n_embd=256, n_head=8, rotary_dim=16, n_inner=128),
    "cohere_compass_text": {"logit_scale": 0.25, "head_dim": 32, "rope_parameters": {"full_attention": ROPE}},
    "dbrx": dict(
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        ffn_config={"ffn_hidden_size": 128, "moe_num_experts": 2, "moe_top_k": 2},
    ),
    "deepseek_v4": dict(
        **dict(head_dim=64, o_groups=2, o_lora_rank=32, num_key_value_heads=1, num_hidden_layers=3),
        layer_types=["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        mlp_layer_types=["hash_moe", "moe", "moe"],
        partial_rotary_factor=0.25,
        rope_parameters={"main": {**ROPE, "partial_rotary_factor": 0.25}}
        | {"compress": {**ROPE, "partial_rotary_factor": 0.25}},
    ),
    "mamba2": dict(num_heads=4, n_groups=1, chunk_size=16),
    "mimo_v2_flash": dict(
        num_key_value_heads=1,
        rope_parameters=dict.fromkeys(("full_attention", "sliding_attention"), {**ROPE, "partial_rotary_factor": 0.5}),
    ),
    "nemotron_h": dict(
        n_groups=1, chunk_size=16, layers_block_type=["linear_attention", "full_attention", "moe", "mlp"]
    ),
    "phi4_multimodal": dict(
        vision_config={**TOWER, "num_hidden_layers": 2, "image_size": 56},
        audio_config={**TOWER, "num_blocks": 1, "ext_pw_out_channel": 64, "nemo_conv_channels": 8}
        | {"depthwise_separable_out_channel": 64},
    ),
    "qwen4_exp_text": dict(
        **dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=32, indexer_budget=64, indexer_compress_ratio=4),
        **dict(hc_count=2, hc_lowrank=16, ple_embed_dim=64, ngram_vocab_size_base=1000),
    ),
    "recurrent_gemma": dict(block_types=["recurrent", "attention"], attention_window_size=16),
    "reformer": dict(is_decoder=True, attn_layers=["local", "lsh"], axial_pos_embds=False, feed_forward_size=128),
    "xlstm": dict(embedding_dim=64, num_blocks=2, qk_dim_factor=1.0),
    "zamba": {**MIXERS, "n_mamba_heads": 2, "mamba_dt_rank": 8} | {"layers_block_type": HYBRID},
    "zamba2": {**MIXERS, "mamba_headdim": 32, "chunk_size": 16, "kv_channels": 64, "num_query_groups": 2}
    | {"layers_block_type": HYBRID, "adapter_rank": 8},
}
"""Architecture of AutoModelForCausalLM -> values of its config besides the small dimensions."""
BERT = {"model_type": "bert", **small_values("bert", {})}
SPEECH: dict[str, Any] = dict(
    **dict(encoder_layerdrop=0.0, decoder_layerdrop=0.0),
    **dict(speech_encoder_layers=1, speech_encoder_attention_heads=2, speech_encoder_intermediate_size=64),
    **dict(t2u_encoder_layers=1, t2u_decoder_layers=1, t2u_encoder_ffn_dim=64, t2u_decoder_ffn_dim=64),
    **dict(t2u_encoder_attention_heads=2, t2u_decoder_attention_heads=2, t2u_vocab_size=64),
)
"""Dimensions of the parts that read and write sound, which a model of texts does not have."""
SOUND = (
    *("audioflamingo3", "glmasr", "granite_speech", "granite_speech_plus", "moss_transcribe_diarize", "musicflamingo"),
    *("nemo_speechlm", "qwen2_audio", "qwen3_asr", "vibevoice_asr", "voxtral", "voxtral_realtime"),
)
"""Architectures of AutoModelForSeq2SeqLM that read sound."""
DRAFTERS = {
    "gemma4_assistant": {
        "model_type": "gemma4_text",
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
    },
    "gemma4_unified_assistant": {"model_type": "gemma4_unified_text"},
}
"""Architectures of AutoModelForCausalLM that read the states of another model, with their text_config."""
SOUND_DECODERS = ("whisper", "musicgen", "musicgen_melody", "moss_transcribe_diarize (decoder)")
"""Those of AutoModelForCausalLM that read or write sound."""
MORE_ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bigbird_pegasus", "blenderbot", "blenderbot-small", "fsmt", "mvp", "pegasus_x"), {}),
    **dict.fromkeys(("plbart", "switch_transformers", "umt5", "prophetnet", "marian"), {}),
    **dict.fromkeys(("seamless_m4t", "seamless_m4t_v2"), SPEECH),
    "encoder-decoder": dict(encoder=BERT, decoder={**BERT, "is_decoder": True, "add_cross_attention": True}),
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
