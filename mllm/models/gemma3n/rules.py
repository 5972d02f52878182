"""Rules of type `gemma3n-student`: limits of the convolutions of its vision tower."""

from __future__ import annotations

from mllm.config.checkpoint import Checkpoint
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError


def refuse_quantized_vision(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for 4 or 8 bits with `part='vision'`."""
    args = config.model_args
    if args.load_in_4bit or args.load_in_8bit:
        raise ConfigError(
            f"{config.origin('model_args', 'load_in_4bit' if args.load_in_4bit else 'load_in_8bit')}: the vision tower "
            f"of Gemma 3n has convolutions and no Linear layer, so only the language model can be quantized, which "
            f"part='vision' does not load: remove this key (the tower needs 1.2 GB in fp32, 0.6 GB in bf16)"
        )


def refuse_half_precision(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for fp16 with `part='vision'`."""
    if config.training_args["fp16"]:
        raise ConfigError(
            f"{config.origin('training_args', 'fp16')}: the convolutions of Gemma 3n's vision tower overflow in fp16: "
            f"set fp16=False (it needs 1.2 GB in fp32), or bf16=True on Ampere and newer cards"
        )


def refuse_privacy(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for differential privacy: per-sample gradients are supported for Linear layers only."""
    if config.privacy_args is None:
        return
    raise ConfigError(
        f"{config.origin('model_args', 'type')}: type='{config.model_args.type}' trains the convolutions of Gemma 3n's "
        f"vision tower, but with privacy_args only LoRA on Linear layers and linear heads can be trained: use a model "
        f"whose vision tower is a SigLIP, such as google/medsiglip-448"
    )
