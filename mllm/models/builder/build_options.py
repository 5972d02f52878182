"""Keyword arguments of loading, LoRA and encoders, from `model_args` and the hardware."""

from __future__ import annotations

from typing import Any

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.backbone.checkpoint_folder import find_checkpoint
from mllm.models.backbone.loading import load_config, quantization


def load_options(args: ModelArgs, hardware: Hardware, keep: list[str]) -> dict[str, Any]:
    """Return the arguments of `load_model`; `keep` contains prefixes of modules that are not quantized."""
    config = load_config(find_checkpoint(args.model_name_or_path), trust_remote_code=args.trust_remote_code)
    return dict(
        precision=hardware.precision,
        device=hardware.device,
        quantization_config=quantization(
            config,
            load_in_4bit=args.load_in_4bit,
            load_in_8bit=args.load_in_8bit,
            precision=hardware.precision,
            keep=keep,
        ),
        attn_implementation=args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
    )


def quantization_bits(args: ModelArgs) -> int:
    """Return the bits of quantized weights: 4 or 8; 8 also without quantization, where it has no effect."""
    return 4 if args.load_in_4bit else 8


def lora_options(args: ModelArgs) -> dict[str, Any]:
    """Return the arguments of `attach_adapter` except the starting adapter and the targets."""
    keys = ("lora_r", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora", "merge_lora")
    return {key: vars(args)[key] for key in keys}


def encoder_options(args: ModelArgs) -> dict[str, Any]:
    """Return the arguments that all encoders of text share."""
    keys = ("max_length", "turn_end", "system", "chat_template", "template_args")
    return {key: vars(args)[key] for key in keys}
