"""Rules for packing."""

from __future__ import annotations

from mllm.config.checkpoint import Checkpoint
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError
from mllm.family import FAMILIES, Family

PACKED = (
    *("gemma", "gemma2", "gemma3_text", "gemma3n", "gemma3n_text", "vaultgemma"),
    *("llama", "mistral", "qwen2", "qwen3"),
)
"""Architectures for which tests show that packed samples have the losses and gradients of single ones."""
ATTENTION = (None, "eager", "sdpa")
"""Attention implementations of these tests; None: transformers chooses one of them."""


def refuse_packing(config: RunConfig, checkpoint: Checkpoint, family: Family) -> None:
    """Raise `ConfigError` for packing where samples in one row could attend to each other."""
    if not config.data_args.packing:
        return
    args, origin = config.model_args, config.origin("data_args", "packing")
    if config.privacy_args is not None:
        raise ConfigError(
            f"{origin}: packing=True puts several samples into one row, and privacy_args clips the gradient of each "
            "sample: remove it"
        )
    if family.cannot_pack is not None:
        exact = ", ".join(f"'{other.type}'" for other in FAMILIES if other.cannot_pack is None)
        raise ConfigError(
            f"{origin}: packing=True is for type={exact}, and it cannot be exact with type='{args.type}', because "
            f"{family.cannot_pack}: remove it; tokens_per_micro_batch keeps padding small"
        )
    if checkpoint.model_type is not None and checkpoint.model_type not in PACKED:
        raise ConfigError(
            f"{origin}: packing=True has not been tested with {args.model_name_or_path}, a "
            f"'{checkpoint.model_type}' model (tested: {', '.join(PACKED)}): remove it; tokens_per_micro_batch keeps "
            "padding small"
        )
    if args.attn_implementation not in ATTENTION:
        raise ConfigError(
            f"{config.origin('model_args', 'attn_implementation')}: attn_implementation='{args.attn_implementation}' "
            f"has not been tested with packing=True ({origin}), where samples of a row must not attend to each other: "
            "use 'sdpa' or 'eager', or remove packing"
        )
