"""Keyword arguments of loading, LoRA and encoders, from `model_args` and the hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.config.hardware import Hardware
from mllm.config.rules.attention import FLEX
from mllm.config.schema import ModelArgs
from mllm.config.trainable import Parts, trained_parts
from mllm.models.backbone.checkpoint_folder import find_checkpoint
from mllm.models.backbone.loading import load_config, quantization


def checkpoint_of(args: ModelArgs) -> str:
    """Return the folder or the name on the Hub of a checkpoint. `from_scratch` needs no weights in it."""
    return find_checkpoint(args.model_name_or_path, with_weights=not args.from_scratch)


def load_options(args: ModelArgs, hardware: Hardware, keep: list[str]) -> dict[str, Any]:
    """Return the arguments of `load_model`; `keep` contains prefixes of modules that are not quantized.

    A language model that trains in full is loaded in fp32: conversion after loading would keep the rounding.
    """
    config = load_config(checkpoint_of(args), trust_remote_code=args.trust_remote_code)
    return dict(
        precision="fp32" if trained_parts(args).whole_language else hardware.precision,
        device=hardware.device,
        quantization_config=quantization(
            config,
            load_in_4bit=args.load_in_4bit,
            load_in_8bit=args.load_in_8bit,
            precision=hardware.precision,
            keep=keep,
        ),
        # FlexAttention computes rows of samples only, in the place of SDPA.
        attn_implementation=None if args.attn_implementation == FLEX else args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
        init_seed=args.init_seed if args.from_scratch else None,
    )


def quantization_bits(args: ModelArgs) -> int:
    """Return the bits of quantized weights: 4 or 8; 8 also without quantization, where it has no effect."""
    return 4 if args.load_in_4bit else 8


def lora_options(args: ModelArgs) -> dict[str, Any]:
    """Return the arguments of `attach_adapter` except the starting adapter and the patterns of its layers."""
    target = trained_parts(args).lora_target
    keys = ("lora_alpha", "lora_dropout", "use_rslora", "use_dora", "merge_lora")
    chosen = {"lora_r": None} if target is None else {"lora_r": args.lora_r, "lora_target": target}
    return {**{key: vars(args)[key] for key in keys}, **chosen}


def towers_in_full(args: ModelArgs, towers: Mapping[str, str]) -> dict[str, int | None]:
    """Return the argument `full` of `train_in_full` for a model with these towers."""
    parts: Parts = trained_parts(args)
    return {tower: count for tower, count in parts.full.items() if parts.named or tower in towers}


def encoder_options(args: ModelArgs) -> dict[str, Any]:
    """Return the arguments that all encoders of text share."""
    keys = ("max_length", "turn_end", "system", "chat_template", "template_args")
    return {key: vars(args)[key] for key in keys}
