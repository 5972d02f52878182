"""Tiny random checkpoints of every family, with real processors: what `from_pretrained` reads in life, below 8 MB.

Widths are multiples of 64, since bitsandbytes quantizes in blocks of 64. What the models' own initialization leaves at
zero or nearly equal (Gemma 3's `mm_input_projection_weight`, norms, biases) is filled, so that no test of images or
norms passes emptily.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from mllm.errors import ConfigError, hint
from mllm.tiny import templates
from mllm.tiny.llava import LLAVA_FAMILIES
from mllm.tiny.parts import TEXT, VISION, Family, filled, make_special, new, padded
from mllm.tiny.text import TEXT_FAMILIES
from mllm.tiny.vision import VISION_FAMILIES
from mllm.tiny.vocabulary import train_bytes, train_pieces

GEMMA_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_IMAGE_TOKENS = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
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
_NAMED = {"vaultgemma": "vaultgemma", "gemma-3n": "gemma3n-deep"}
"""Part of a checkpoint's name -> the tiny family that differs from others of its type, or goes where they cannot."""


def family_of(type: str, name: str = "") -> str:
    """The tiny family that stands in for the checkpoint `name` of the model type `type`.

    A type that loads several architectures has one for all of them, unless the name tells one that differs much.
    """
    families = {"medgemma": "medgemma", "image-text": "llava", "shikra": "shikra", "perceptionGPT": "shikra"}
    families |= {"causal-lm": "gemma3n", "seq2seq": "t5gemma"}
    families |= {"gemma3n-student": "gemma3n-student", "medsiglip": "medsiglip"}
    if type not in families:
        raise ConfigError(f"no tiny checkpoint stands in for type '{type}'{hint(type, families)}")
    if type == "causal-lm":
        return next((family for part, family in _NAMED.items() if part in name.lower()), families[type])
    return families[type]


def ensure_tiny(family: str, parent: str | Path) -> Path:
    """The folder `tiny-<family>` in `parent`, written where it is not there yet."""
    return write_tiny(family, Path(parent) / f"tiny-{family}")


def write_tiny(
    family: str,
    folder: str | Path,
    *,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> Path:
    """Write a tiny checkpoint of `family`, a key of `FAMILIES`, with its processor into `folder`.

    `text` and `vision` change values of the two configs. The same arguments give the same bytes. A folder that already
    holds a checkpoint is left as it is; processes may race for it: it appears by one rename.
    """
    folder = Path(folder)
    if family not in FAMILIES:
        raise ConfigError(f"unknown tiny family '{family}'{hint(family, FAMILIES)}")
    if (folder / "config.json").is_file():
        return folder
    model, processor = FAMILIES[family](seed, text or {}, vision or {})
    if model.can_generate():
        tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=model.config.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    try:
        os.replace(partial, folder)
    except OSError:
        shutil.rmtree(partial)
        if not (folder / "config.json").is_file():
            raise
    return folder


def _medgemma(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Gemma 3 as MedGemma is built: SigLIP at 896 pixels, 256 tokens an image, sliding and full attention."""
    names = GEMMA_TOKENS + list(GEMMA_IMAGE_TOKENS.values())
    vocabulary, merges = train_pieces(names)
    tokenizer = new(
        GemmaTokenizer, vocab=vocabulary, merges=merges, extra_special_tokens=GEMMA_IMAGE_TOKENS, add_bos_token=True
    )
    make_special(tokenizer, names)
    config = new(
        Gemma3Config,
        text_config={
            **TEXT,
            "vocab_size": padded(len(tokenizer)),
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            **text,
        },
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False, **vision},
        mm_tokens_per_image=256,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    side = config.vision_config.image_size
    images = Gemma3ImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    processor = Gemma3Processor(images, tokenizer, chat_template=templates.GEMMA3, image_seq_length=256)
    return filled(Gemma3ForConditionalGeneration, config, seed), processor


def _qwen2_vl(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Qwen2-VL: images keep their shape (4 to 64 tokens an image), positions in three axes."""
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


FAMILIES: dict[str, Family] = {"medgemma": _medgemma, "qwen2_vl": _qwen2_vl}
FAMILIES |= LLAVA_FAMILIES | TEXT_FAMILIES | VISION_FAMILIES
