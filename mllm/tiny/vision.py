"""The tiny models whose vision tower is taught or teaches alone: Gemma 3n with MobileNet-v5, and MedSigLIP."""

from __future__ import annotations

import copy
from typing import Any

from timm.models._efficientnet_builder import decode_arch_def
from transformers import (
    Gemma3nAudioConfig,
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    GemmaTokenizer,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from mllm.tiny import templates
from mllm.tiny.parts import VISION, Family, filled, make_special, new, padded
from mllm.tiny.text import GEMMA3N_TEXT, TOKENS
from mllm.tiny.vocabulary import train_pieces

IMAGE_TOKENS = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
AUDIO_TOKENS = dict(boa_token="<start_of_audio>", eoa_token="<end_of_audio>", audio_token="<audio_soft_token>")
SIDE = 96
"""Pixels of the tiny Gemma 3n's images; the published one sees 768."""
BLOCKS = [
    ["er_r1_k3_s2_e4_c16", "er_r1_k3_s1_e4_c16"],
    ["uir_r1_a3_k5_s2_e6_c24", "uir_r1_a5_k0_s1_e4_c24"],
    ["uir_r1_a5_k5_s2_e6_c32", "mqa_r1_k3_h2_v2_s1_d16_c32", "uir_r1_a0_k0_s1_e2_c32"],
    ["uir_r1_a5_k5_s2_e6_c48", "mqa_r1_k3_h2_s1_d16_c48", "uir_r1_a0_k0_s1_e2_c48"],
]
"""One of each kind of block of `mobilenetv5_300m_enc` in each of its four stages, in timm's notation."""
AUDIO = dict(
    hidden_size=64,
    conf_num_attention_heads=2,
    conf_num_hidden_layers=1,
    sscp_conv_channel_size=[8, 4],
    vocab_size=16,
    input_feat_size=32,
)


def _gemma3n_student(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Gemma 3n whole: MobileNet-v5 at 96 pixels, 9 tokens an image, an audio tower, and its language model."""
    names = TOKENS + list(IMAGE_TOKENS.values())
    vocabulary, merges = train_pieces(names)
    # Sounds stand last: MedGemma and Gemma 3n have the same words, and differ behind them.
    tokenizer = new(
        GemmaTokenizer,
        vocab=vocabulary,
        merges=merges,
        extra_special_tokens=IMAGE_TOKENS | AUDIO_TOKENS,
        add_bos_token=True,
    )
    make_special(tokenizer, names + list(AUDIO_TOKENS.values()))
    rows = padded(len(tokenizer))
    blocks = vision.get("blocks", BLOCKS)
    config = new(
        Gemma3nConfig,
        text_config={**GEMMA3N_TEXT, "vocab_size": rows, "vocab_size_per_layer_input": rows, **text},
        # Behind the vocabulary stand the ids that the embedders of images and sounds own, as in the published model.
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
    told = copy.deepcopy(config.vision_config.model_args)
    model = filled(Gemma3nForConditionalGeneration, config, seed)
    model.config.vision_config.model_args = told  # timm uses up the arguments that it is given
    return model, processor


def _medsiglip(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """MedSigLIP as it is published alone: a SigLIP of images and text, of which we read the tower of images."""
    tower = {**VISION, "image_size": 112, "num_hidden_layers": 4, **vision}
    config = new(
        SiglipConfig,
        vision_config=tower,
        text_config={**{key: VISION[key] for key in ("hidden_size", "intermediate_size")}, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "vocab_size": 64, "projection_size": VISION["hidden_size"],
                     "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **text},
    )  # fmt: skip
    side = tower["image_size"]
    images = SiglipImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return filled(SiglipModel, config, seed), images


VISION_FAMILIES: dict[str, Family] = {"gemma3n-student": _gemma3n_student, "medsiglip": _medsiglip}
