"""Rules for adapters and quantized weights."""

from __future__ import annotations

from mllm.config.schema import RunConfig
from mllm.config.trainable import trained_parts
from mllm.errors import ConfigError


def refuse_quantization_conflicts(config: RunConfig) -> None:
    """Raise `ConfigError` for 4-bit with 8-bit loading, and for merging an adapter into quantized weights."""
    args = config.model_args
    if args.load_in_4bit and args.load_in_8bit:
        raise ConfigError(
            f"{config.origin('model_args', 'load_in_4bit')}: load_in_4bit=True and load_in_8bit=True "
            f"({config.origin('model_args', 'load_in_8bit')}) exclude each other: set one of them to False"
        )
    for key, is_set in (("load_in_4bit", args.load_in_4bit), ("load_in_8bit", args.load_in_8bit)):
        if args.merge_lora and is_set:
            raise ConfigError(
                f"{config.origin('model_args', 'merge_lora')}: merge_lora=True and {key}=True "
                f"({config.origin('model_args', key)}) exclude each other, because an adapter is merged into "
                f"full-precision weights only: set one of them to False"
            )


def refuse_missing_rank(config: RunConfig) -> None:
    """Raise `ConfigError` for lora_r=None without a starting adapter whose rank could be used."""
    args = config.model_args
    if args.lora_r is None and args.adapter_path is None and trained_parts(args).has_lora:
        raise ConfigError(
            f"{config.origin('model_args', 'lora_r')}: lora_r=None takes the rank of adapter_path, which is None too: "
            f"set lora_r to a rank such as 16, or adapter_path to an adapter"
        )
