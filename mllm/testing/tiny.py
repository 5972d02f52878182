"""Tiny random checkpoints of every family, with real processors: what `from_pretrained` reads in life, below 5 MB.

Widths are multiples of 64, since bitsandbytes quantizes in blocks of 64. What the models' own initialization leaves at
zero or nearly equal (Gemma 3's `mm_input_projection_weight`, norms, biases) is filled, so that no test of images or
norms passes emptily.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AddedToken,
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
    GenerationConfig,
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

from mllm.errors import ConfigError, hint
from mllm.testing import templates
from mllm.testing.vocabulary import train_bytes, train_pieces

TEXT = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
)
"""Dimensions that the language models share: 4 heads of 32."""
VISION = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=896, patch_size=14
)
"""Dimensions that the SigLIP and CLIP towers share."""
GEMMA_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_IMAGE_TOKENS = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
LLAVA_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
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

Family = Callable[[int, dict[str, Any], dict[str, Any]], tuple[PreTrainedModel, Any]]


def family_of(type: str) -> str:
    """The tiny family that stands in for checkpoints of the model type `type`."""
    families = {"medgemma": "medgemma", "image-text": "llava"}
    if type not in families:
        raise ConfigError(f"no tiny checkpoint stands in for type '{type}'{hint(type, families)}")
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
    """Write a tiny checkpoint of `family` ('medgemma', 'llava', 'qwen2_vl') with its processor into `folder`.

    `text` and `vision` change values of the two configs. The same arguments give the same bytes. A folder that already
    holds a checkpoint is left as it is; processes may race for it: it appears by one rename.
    """
    folder = Path(folder)
    if family not in FAMILIES:
        raise ConfigError(f"unknown tiny family '{family}'{hint(family, FAMILIES)}")
    if (folder / "config.json").is_file():
        return folder
    model, processor = FAMILIES[family](seed, text or {}, vision or {})
    model.generation_config = GenerationConfig(
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
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
    tokenizer = _new(
        GemmaTokenizer, vocab=vocabulary, merges=merges, extra_special_tokens=GEMMA_IMAGE_TOKENS, add_bos_token=True
    )
    _make_special(tokenizer, names)
    config = _new(
        Gemma3Config,
        text_config={
            **TEXT,
            "vocab_size": _padded(len(tokenizer)),
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
    return _model(Gemma3ForConditionalGeneration, config, seed), processor


def _llava(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """LLaVA 1.5: CLIP at 112 pixels (64 tokens an image), a projector of two layers, LLaMA."""
    vocabulary, merges = train_pieces(LLAVA_TOKENS)
    tokenizer = _new(
        LlamaTokenizer,
        vocab=vocabulary,
        merges=merges,
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
        add_bos_token=True,
    )
    _make_special(tokenizer, LLAVA_TOKENS)
    config = _new(
        LlavaConfig,
        text_config={"model_type": "llama", **TEXT, "vocab_size": _padded(len(tokenizer)), **text},
        vision_config={
            "model_type": "clip_vision_model",
            **VISION,
            "image_size": 112,
            "projection_dim": 64,
            **vision,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    side = config.vision_config.image_size
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=templates.LLAVA,
    )
    return _model(LlavaForConditionalGeneration, config, seed), processor


def _qwen2_vl(seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Qwen2-VL: images keep their shape (4 to 64 tokens an image), positions in three axes."""
    vocabulary, merges = train_bytes(QWEN_TOKENS)
    tokenizer = _new(Qwen2Tokenizer, vocab=vocabulary, merges=merges, eos_token="<|im_end|>")
    _make_special(tokenizer, QWEN_TOKENS)
    ids = {name: index for name, index in zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(QWEN_TOKENS), strict=True)}
    config = _new(
        Qwen2VLConfig,
        text_config={
            **TEXT,
            "vocab_size": _padded(len(tokenizer)),
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
    return _model(Qwen2VLForConditionalGeneration, config, seed), processor


FAMILIES: dict[str, Family] = {"medgemma": _medgemma, "llava": _llava, "qwen2_vl": _qwen2_vl}


def _new(kind: Any, **values: Any) -> Any:
    """`kind(**values)`; transformers' type hints do not name everything that its classes take."""
    return kind(**values)


def _padded(vocabulary: int) -> int:
    """Published models have more rows than tokens (Gemma 3: 262,208 for 262,145); so have ours."""
    return (vocabulary // 64 + 1) * 64


def _make_special(tokenizer: Any, names: list[str]) -> None:
    """Keep `names` whole: they have ids in the vocabulary already, but merges would read them as text."""
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def _model(kind: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    """A model with every parameter filled from `seed` alone, variance kept from layer to layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
                else:
                    transposed = name.endswith("mm_input_projection_weight")  # [in, out], unlike nn.Linear
                    inputs = parameter.shape[0] if transposed else parameter[0].numel()
                    parameter.copy_(torch.randn(parameter.shape) / inputs**0.5)
    return model.eval()
