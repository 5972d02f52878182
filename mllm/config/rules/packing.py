"""Rules for what trains on text: packing."""

from __future__ import annotations

from mllm.config.checkpoint import Checkpoint
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError

PACKED = (
    *("gemma", "gemma2", "gemma3_text", "gemma3n", "gemma3n_text", "vaultgemma"),
    *("llama", "mistral", "qwen2", "qwen3"),
)
"""The architectures for which packed samples are shown to have the losses and gradients that they have alone."""
ATTENTION = (None, "eager", "sdpa")
"""The implementations of attention with which this is shown; None means one of them."""


def refuse_packing(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuses packing where samples in a row could see each other."""
    if not config.data_args.packing:
        return
    args, place = config.model_args, config.place("data_args", "packing")
    if config.privacy_args is not None:
        raise ConfigError(
            f"{place}: packing=True puts several samples into one row, and privacy_args clips each sample's own "
            "gradient: remove it"
        )
    if args.type == "seq2seq":
        raise ConfigError(
            f"{place}: packing=True cannot be exact with type='seq2seq', whose decoder would look at the sources of "
            "all samples in a row: remove it; tokens_per_micro_batch keeps padding small"
        )
    if args.type != "causal-lm":
        raise ConfigError(
            f"{place}: packing=True is for type='causal-lm', and type='{args.type}' reads images, whose tokens look "
            "forward and would be told apart by no position: remove it; tokens_per_micro_batch keeps padding small"
        )
    if checkpoint.model_type is not None and checkpoint.model_type not in PACKED:
        raise ConfigError(
            f"{place}: packing=True is not shown to be exact for {args.model_name_or_path}, a "
            f"'{checkpoint.model_type}' model (it is for {', '.join(PACKED)}): remove it; tokens_per_micro_batch keeps "
            "padding small"
        )
    if args.attn_implementation not in ATTENTION:
        raise ConfigError(
            f"{config.place('model_args', 'attn_implementation')}: attn_implementation='{args.attn_implementation}' "
            f"is not shown to keep the samples of a row apart, which packing=True ({place}) needs: use 'sdpa' or "
            "'eager', or remove packing"
        )
