"""Rules for packing."""

from __future__ import annotations

from mllm.config.checkpoint import Checkpoint
from mllm.config.rules.attention import OF_ROWS
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError
from mllm.family import Family

PACKED = (
    *("gemma", "gemma2", "gemma3_text", "gemma3n", "gemma3n_text", "vaultgemma"),
    *("llama", "mistral", "qwen2", "qwen3"),
)
"""Architectures for which tests show that packed texts have the losses and gradients of single ones."""
PACKED_IMAGES = ("gemma3", "llava")
"""Those for which tests show it of packed samples with images."""


def packed_architectures(family: Family) -> tuple[str, ...]:
    """Return the architectures whose samples can be packed when a family loads them."""
    if family.cannot_pack is not None:
        return ()
    return PACKED_IMAGES if family.reads_images else PACKED


def refuse_packing(config: RunConfig, checkpoint: Checkpoint, family: Family) -> None:
    """Raise `ConfigError` for packing where samples in one row could attend to each other."""
    if not config.data_args.packing:
        return
    args, origin = config.model_args, config.origin("data_args", "packing")
    architectures = packed_architectures(family)
    if not architectures:
        raise ConfigError(
            f"{origin}: packing=True cannot be exact with type='{args.type}', because {family.cannot_pack}: remove it; "
            "tokens_per_micro_batch keeps padding small"
        )
    if checkpoint.model_type is not None and checkpoint.model_type not in architectures:
        raise ConfigError(
            f"{origin}: packing=True has not been tested with type='{args.type}' and {args.model_name_or_path}, a "
            f"'{checkpoint.model_type}' model (tested: {', '.join(architectures)}): remove it; tokens_per_micro_batch "
            "keeps padding small"
        )
    if args.heads:
        raise ConfigError(f"{origin}: packing=True is not possible with heads: remove one of them")
    if args.attn_implementation not in OF_ROWS:
        raise ConfigError(
            f"{config.origin('model_args', 'attn_implementation')}: attn_implementation='{args.attn_implementation}' "
            f"is not possible with packing=True ({origin}), which has an attention of its own: remove one of them"
        )
