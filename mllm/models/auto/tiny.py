"""Tiny LLaVA and Qwen2-VL."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPImageProcessor,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from mllm.tiny import templates
from mllm.tiny.parts import TEXT, VISION, filled, make_special, new, padded
from mllm.tiny.vocabulary import train_bytes, train_pieces

LLAMA_TOKENS = ["<unk>", "<s>", "</s>"]
LLAVA_TOKENS = [*LLAMA_TOKENS, "<pad>", "<image>"]
CLIP_112 = {**VISION, "image_size": 112, "projection_dim": 64}
"""Dimensions of a CLIP tower of 112 pixels: 64 tokens an image."""
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


def llava(
    seed: int, text: dict[str, Any], vision: dict[str, Any], template: str = templates.LLAVA
) -> tuple[PreTrainedModel, Any]:
    """Return LLaVA 1.5: CLIP at 112 pixels (64 tokens an image), a projector of two layers, LLaMA."""
    vocabulary, merges = train_pieces(LLAVA_TOKENS)
    tokenizer = new(
        LlamaTokenizer,
        vocab=vocabulary,
        merges=merges,
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
        add_bos_token=True,
    )
    make_special(tokenizer, LLAVA_TOKENS)
    config = new(
        LlavaConfig,
        text_config={"model_type": "llama", **TEXT, "vocab_size": padded(len(tokenizer)), **text},
        vision_config={"model_type": "clip_vision_model", **CLIP_112, **vision},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = LlavaProcessor(
        clip_images(config.vision_config.image_size),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return filled(LlavaForConditionalGeneration, config, seed), processor


def clip_images(side: int) -> CLIPImageProcessor:
    """Return CLIP's image processor: the shorter side is resized, and the middle is cut out."""
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def qwen2_vl(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return Qwen2-VL: images keep their shape (4 to 64 tokens an image), positions have three axes."""
    vocabulary, merges = train_bytes(QWEN_TOKENS)
    tokenizer = new(Qwen2Tokenizer, vocab=vocabulary, merges=merges, eos_token="<|im_end|>")
    make_special(tokenizer, QWEN_TOKENS)
    ids = {name: index for name, index in zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(QWEN_TOKENS), strict=True)}
    config = new(
        Qwen2VLConfig,
        text_config={
            **TEXT,
            "vocab_size": padded(len(tokenizer)),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            **text,
        },
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2, **vision},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=templates.QWEN2_VL,
    )
    return filled(Qwen2VLForConditionalGeneration, config, seed), processor
