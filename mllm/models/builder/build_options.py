"""What a config and the hardware say of loading a backbone and of its LoRA, as keyword arguments."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.backbone.loading import quantization


def load_options(config: PretrainedConfig, args: ModelArgs, hardware: Hardware, keep: list[str]) -> dict[str, Any]:
    """The arguments of `load_model`; `keep` holds prefixes of modules that are not quantized."""
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


def lora_options(args: ModelArgs) -> dict[str, Any]:
    """The arguments of `attach_adapter` but for where to start and what to adapt."""
    keys = ("lora_r", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora", "merge_lora")
    return {key: vars(args)[key] for key in keys}
