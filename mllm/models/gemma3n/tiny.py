"""Tiny Gemma 3n: its language model, and the full model with MobileNet-v5 and audio tower."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.models._efficientnet_builder import decode_arch_def
from transformers import (
    Gemma3nAudioConfig,
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForCausalLM,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    Gemma3nTextConfig,
    PreTrainedModel,
    SiglipImageProcessor,
)

from mllm.tiny import templates
from mllm.tiny.parts import GEMMA_IMAGE_TOKENS, GEMMA_TOKENS, TEXT, gemma_tokenizer, new, padded_rows, random_model

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
"""Layers that llama.cpp expects of every Gemma 3n: twenty with their own keys, ten sparse ones."""

AUDIO_TOKENS = dict(boa_token="<start_of_audio>", eoa_token="<end_of_audio>", audio_token="<audio_soft_token>")
SIDE = 96
"""Pixels on each side of an image; 768 in the published model."""
BLOCKS = [
    ["er_r1_k3_s2_e4_c16", "er_r1_k3_s1_e4_c16"],
    ["uir_r1_a3_k5_s2_e6_c24", "uir_r1_a5_k0_s1_e4_c24"],
    ["uir_r1_a5_k5_s2_e6_c32", "mqa_r1_k3_h2_v2_s1_d16_c32", "uir_r1_a0_k0_s1_e2_c32"],
    ["uir_r1_a5_k5_s2_e6_c48", "mqa_r1_k3_h2_s1_d16_c48", "uir_r1_a0_k0_s1_e2_c48"],
]
"""One block of each kind of `mobilenetv5_300m_enc` in each of its four stages, in timm's notation."""
AUDIO = dict(
    hidden_size=64,
    conf_num_attention_heads=2,
    conf_num_hidden_layers=1,
    sscp_conv_channel_size=[8, 4],
    vocab_size=16,
    input_feat_size=32,
)


def gemma3n(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return Gemma 3n's language model: alternating updates, embeddings for each layer, shared keys, softcaps."""
    tokenizer = gemma_tokenizer()
    tokenizer.chat_template = templates.GEMMA3
    values = {
        **GEMMA3N_TEXT,
        "vocab_size": padded_rows(len(tokenizer)),
        "vocab_size_per_layer_input": padded_rows(len(tokenizer)),
        **text,
    }
    config = new(
        Gemma3nTextConfig,
        **values,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    return random_model(Gemma3nForCausalLM, config, seed), tokenizer


def gemma3n_deep(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return Gemma 3n's language model with enough layers for llama.cpp.

    Gemma 3n does not scale attention scores. Random queries attend to one token, and many such layers amplify rounding
    errors until a merge is no longer exact, so the queries are made small.
    """
    model, tokenizer = gemma3n(seed, {**GEMMA3N_DEEP, **text}, vision)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_norm.weight"):
                parameter.mul_(0.05)
    return model, tokenizer


def gemma3n_student(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return Gemma 3n: MobileNet-v5 at 96 pixels, 9 tokens an image, an audio tower, and its language model."""
    names = [*GEMMA_TOKENS, *GEMMA_IMAGE_TOKENS.values()]
    # Audio tokens come last: MedGemma and Gemma 3n share the words before them.
    tokenizer = gemma_tokenizer(names, GEMMA_IMAGE_TOKENS | AUDIO_TOKENS, last=list(AUDIO_TOKENS.values()))
    rows = padded_rows(len(tokenizer))
    blocks = vision.get("blocks", BLOCKS)
    config = new(
        Gemma3nConfig,
        text_config={**GEMMA3N_TEXT, "vocab_size": rows, "vocab_size_per_layer_input": rows, **text},
        # The ids of the image and audio embedders follow the vocabulary, as in the published model.
        vision_config={
            "model_args": {
                "block_args": decode_arch_def(blocks),
                "stem_size": 16,
                "msfa_output_resolution": vision.get("resolution", SIDE // 32),
            },
            "vocab_size": 8,
            "vocab_offset": rows,
        },
        audio_config=new(Gemma3nAudioConfig, **AUDIO, vocab_offset=rows + 8).to_dict(),
        vision_soft_tokens_per_image=vision.get("resolution", SIDE // 32) ** 2,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_id=tokenizer.eoa_token_id,
        audio_token_id=tokenizer.audio_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    side = vision.get("image_size", SIDE)
    images = SiglipImageProcessor(
        size={"height": side, "width": side}, do_normalize=False, resample=2, do_convert_rgb=True
    )
    processor = Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(),
        images,
        tokenizer,
        chat_template=templates.GEMMA3N,
        image_seq_length=config.vision_soft_tokens_per_image,
    )
    timm_args = copy.deepcopy(config.vision_config.model_args)
    model = random_model(Gemma3nForConditionalGeneration, config, seed)
    model.config.vision_config.model_args = timm_args  # timm removes the arguments from the dict that it receives
    return model, processor
