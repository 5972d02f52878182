"""Rules for samples that share the tokens of an image."""

from __future__ import annotations

from mllm.config.checkpoint import Checkpoint
from mllm.config.rules.attention import OF_ROWS
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError
from mllm.family import Family

SHARED = (
    *("gemma3", "llava", "internvl", "mistral3", "idefics2", "idefics3"),
    *("llava_next", "llava_onevision", "vipllava", "aya_vision"),
)
"""Architectures for which tests show that samples that share tokens have the losses and gradients of single ones."""
ANSWERED = (*SHARED, "gemma3n")
"""Those for which tests show that answers after shared tokens are the answers to single prompts."""
IMAGE_BLOCKS = ("gemma3",)
"""Those whose image tokens attend to each other in both directions."""


def refuse_sharing(config: RunConfig, checkpoint: Checkpoint, family: Family) -> None:
    """Raise `ConfigError` for `share_images` where samples could attend to each other, or share nothing."""
    if not config.data_args.share_images:
        return
    args, origin = config.model_args, config.origin("data_args", "share_images")
    if config.privacy_args is not None:
        raise ConfigError(
            f"{origin}: share_images=True computes samples together, and privacy_args clips the gradient of each: "
            "remove it"
        )
    reasons = {
        "heads": bool(args.heads),
        "distill_args": config.distill_args is not None,
    }
    for name, is_set in reasons.items():
        if is_set:
            raise ConfigError(f"{origin}: share_images=True is not possible with {name}: remove one of them")
    if checkpoint.model_type is not None and checkpoint.model_type not in SHARED:
        raise ConfigError(
            f"{origin}: share_images=True has not been tested with {args.model_name_or_path}, a "
            f"'{checkpoint.model_type}' model (tested: {', '.join(SHARED)}): remove it"
        )
    if args.attn_implementation not in OF_ROWS:
        raise ConfigError(
            f"{config.origin('model_args', 'attn_implementation')}: attn_implementation="
            f"'{args.attn_implementation}' is not possible with share_images=True ({origin}), which has an attention "
            "of its own: remove one of them"
        )
