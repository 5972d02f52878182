"""Rules for `attn_implementation`: implementations that would change the attention of a model."""

from __future__ import annotations

from mllm.config.checkpoint import Checkpoint
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError

FLEX, FLASH = "flex_attention", "flash_attention"
"""Value for FlexAttention inside rows, and beginning of the values for the packages of FlashAttention."""
OF_ROWS = (None, "sdpa", FLEX)
"""Implementations for rows of samples; None: FlexAttention on a GPU where it agrees with SDPA, else SDPA."""
IN_BOTH_DIRECTIONS = ("gemma3", "gemma4", "gemma4_unified", "git", "paligemma")
"""Architectures in which the tokens of an image, or of a question with its image, attend to later ones."""


def refuse_wrong_attention(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for an attention that no test covers, or that transformers computes with another mask."""
    name, origin = config.model_args.attn_implementation, config.origin("model_args", "attn_implementation")
    if name == FLEX and not (config.data_args.packing or config.data_args.share_images):
        raise ConfigError(
            f"{origin}: attn_implementation='{FLEX}' is the attention of rows with several samples: set "
            "data_args.packing or share_images to True, or remove it"
        )
    if FLASH in (name or "") and checkpoint.model_type in IN_BOTH_DIRECTIONS:
        raise ConfigError(
            f"{origin}: attn_implementation='{name}' has no mask, so the image tokens of a {checkpoint.title} "
            "checkpoint would not attend to later ones, as they must, without an error: remove it"
        )
