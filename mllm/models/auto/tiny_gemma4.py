"""Tiny Gemma 4 with its vision and audio towers."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    PreTrainedModel,
)

from mllm.tiny import templates
from mllm.tiny.parts import TEXT, VISION, gemma_tokenizer, new, padded_rows, random_model

GEMMA4_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"]
MEDIA_TOKENS = dict(
    boi_token="<|image>",
    eoi_token="<image|>",
    image_token="<|image|>",
    boa_token="<|audio>",
    eoa_token="<audio|>",
    audio_token="<|audio|>",
)
SOFT_TOKENS = 70
"""Maximum number of tokens of an image; 280 in the published model, and 70 is the smallest number that it allows."""
TEXT_VALUES = dict(
    num_hidden_layers=4,
    head_dim=32,
    global_head_dim=64,
    hidden_size_per_layer_input=16,
    layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    sliding_window=64,
    num_kv_shared_layers=2,
    use_double_wide_mlp=True,
    final_logit_softcapping=30.0,
)
"""Dimensions of the language model: embeddings for each layer, shared keys, wider heads in layers of full attention."""
AUDIO = dict(
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    subsampling_conv_channels=[8, 4],
    output_proj_dims=64,
)


def gemma4(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return Gemma 4 as E2B and E4B: images keep their shape (up to 70 tokens an image), an audio tower."""
    tokenizer = gemma_tokenizer([*GEMMA4_TOKENS, *MEDIA_TOKENS.values(), "<|video|>"], MEDIA_TOKENS)
    rows = padded_rows(len(tokenizer))
    config = new(
        Gemma4Config,
        text_config={**TEXT, **TEXT_VALUES, "vocab_size": rows, "vocab_size_per_layer_input": rows, **text},
        vision_config={
            **{key: value for key, value in VISION.items() if key not in ("image_size", "patch_size")},
            "num_key_value_heads": 2,
            "head_dim": 32,
            "position_embedding_size": 64,
            **vision,
        },
        audio_config=AUDIO,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_index=tokenizer.eoa_token_id,
        audio_token_id=tokenizer.audio_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<turn|>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(max_soft_tokens=SOFT_TOKENS),
        tokenizer,
        Gemma4VideoProcessor(),
        chat_template=templates.GEMMA4,
        image_seq_length=SOFT_TOKENS,
    )
    return random_model(Gemma4ForConditionalGeneration, config, seed), processor
