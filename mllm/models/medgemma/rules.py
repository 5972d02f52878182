"""Rules of type `medgemma`: checkpoints that it cannot read, and the size and tokens of its images."""

from __future__ import annotations

from mllm.config.checkpoint import Checkpoint
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError
from mllm.family import FAMILIES

IMAGE_TOKENS = (256, 128, 64, 32, 16)
"""Possible numbers of tokens of one image after the pooling of Gemma 3's projector."""


def refuse_other_models(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for a checkpoint that is not Gemma 3 with images."""
    if checkpoint.model_type in (None, "gemma3"):
        return
    args = config.model_args
    problem = f"{config.origin('model_args', 'type')}: type='{args.type}' cannot read {args.model_name_or_path}: it is"
    example = "such as google/medgemma-4b-it"
    if checkpoint.model_type == "gemma3_text":
        raise ConfigError(
            f"{problem} a Gemma 3 checkpoint for text only, without a vision tower; use a checkpoint that reads "
            f"images, {example}"
        )
    raise ConfigError(
        f"{problem} a {checkpoint.title} checkpoint; use "
        f"type='{FAMILIES.for_architecture(checkpoint.model_type).type}' or a Gemma 3 checkpoint {example}"
    )


def token_grid(image_token_len: int) -> tuple[int, int]:
    """Return the rows and columns of an image's tokens: (16, 16) for 256, (16, 8) for 128."""
    columns = 1 << ((image_token_len.bit_length() - 1) // 2)
    return image_token_len // columns, columns


def refuse_image_tokens(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for a number of image tokens that Gemma 3's projector cannot produce by pooling."""
    tokens = config.model_args.image_token_len
    if tokens is not None and tokens not in (*IMAGE_TOKENS, checkpoint.image_tokens):
        raise ConfigError(
            f"{config.origin('model_args', 'image_token_len')}: Gemma 3's projector cannot pool an image to "
            f"image_token_len={tokens}: use {', '.join(map(str, IMAGE_TOKENS[:-1]))} or {IMAGE_TOKENS[-1]}"
        )


def refuse_image_size(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` if the patch size does not divide an image size, or the pool its patches.

    Sizes are in pixels.
    """
    args = config.model_args
    if args.image_size is None and args.image_token_len is None:
        return
    tokens = args.image_token_len or checkpoint.image_tokens
    size = args.image_size or checkpoint.image_size
    origin = config.origin("model_args", "image_size" if args.image_size else "image_token_len")
    rows, columns = token_grid(tokens)
    step = checkpoint.patch_size * max(rows, columns)
    valid = f"use a multiple of {step} such as {max(1, round(size / step)) * step}"
    if size % checkpoint.patch_size:
        raise ConfigError(
            f"{origin}: image_size={size} is not a multiple of {checkpoint.patch_size}, the side of a patch: {valid}"
        )
    grid = size // checkpoint.patch_size
    if grid % rows or grid % columns:
        raise ConfigError(
            f"{origin}: image_size={size} gives {grid} x {grid} patches, which cannot be pooled to {tokens} tokens "
            f"({rows} x {columns}): {valid}"
        )


def refuse_short_length(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for a `max_length` too short for one image and one answer token."""
    args = config.model_args
    tokens = args.image_token_len or checkpoint.image_tokens
    # An image is between a start and an end marker and two line breaks.
    minimum = tokens + 2 + 2 + 1
    if args.max_length < minimum:
        raise ConfigError(
            f"{config.origin('model_args', 'max_length')}: max_length={args.max_length} has no room for one image of "
            f"{tokens} tokens with its markers and one answer token: set it to at least {minimum} "
            f"plus the length of the text"
        )
