"""Tiny Qwen2-VL and Qwen3-VL."""

from __future__ import annotations

from typing import Any

from transformers import (
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mllm.tiny import templates
from mllm.tiny.parts import TEXT, add_special_tokens, new, padded_rows, random_model
from mllm.tiny.vocabulary import train_bytes

QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def qwen2_vl(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return Qwen2-VL: images keep their shape (4 to 64 tokens an image), positions have three axes."""
    tokenizer, ids = qwen_tokenizer()
    config = new(
        Qwen2VLConfig,
        text_config={
            **TEXT,
            "vocab_size": padded_rows(len(tokenizer)),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            **text,
        },
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2, **vision},
        **special_ids(ids),
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
    )
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=templates.QWEN2_VL,
    )
    return random_model(Qwen2VLForConditionalGeneration, config, seed), processor


def qwen3_vl(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return Qwen3-VL: as Qwen2-VL with patches of 16 pixels, and features of a middle layer are added to the states
    of the image tokens in the first layers (DeepStack)."""
    tokenizer, ids = qwen_tokenizer()
    config = new(
        Qwen3VLConfig,
        text_config={
            **TEXT,
            "head_dim": 32,
            "vocab_size": padded_rows(len(tokenizer)),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            **text,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            **vision,
        },
        **special_ids(ids),
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        tie_word_embeddings=True,
    )
    processor = Qwen3VLProcessor(
        qwen3_images(64),
        tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=templates.QWEN3_VL,
    )
    return random_model(Qwen3VLForConditionalGeneration, config, seed), processor


def qwen3_images(most: int) -> Qwen2VLImageProcessor:
    """Return the image processor of Qwen3-VL: 4 to `most` tokens an image, each of 32 x 32 pixels."""
    halves = [0.5, 0.5, 0.5]
    size = {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * most}
    return Qwen2VLImageProcessor(size=size, patch_size=16, image_mean=halves, image_std=halves)


def qwen_tokenizer() -> tuple[Any, dict[str, int]]:
    """Return Qwen's tokenizer and the ids of its special tokens."""
    vocabulary, merges = train_bytes(QWEN_TOKENS)
    tokenizer = new(Qwen2Tokenizer, vocab=vocabulary, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    add_special_tokens(tokenizer, QWEN_TOKENS)
    return tokenizer, dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(QWEN_TOKENS), strict=True))


def special_ids(ids: dict[str, int]) -> dict[str, int]:
    """Return the ids of special tokens under their names in a config of Qwen."""
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
