"""Processor and encoder of a model that answers in a conversation, from `model_args` and without weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import AddedToken, ProcessorMixin

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.backbone.loading import load_processor
from mllm.models.backbone.vision_layers import image_reader
from mllm.models.builder.build_options import checkpoint_of, encoder_options
from mllm.models.encoding.box_formats import BoxFormat, NormalizedText, PerceptionToken
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.marks import MarkWriter
from mllm.models.encoding.text_processor import TextProcessor
from mllm.models.heads import MaskHead, VisionShape
from mllm.registry import BOX_FORMATS, HEADS, build


def load_chat_processor(args: ModelArgs) -> ProcessorMixin:
    """Load tokenizer, image processor and chat template of a checkpoint."""
    return load_processor(checkpoint_of(args), trust_remote_code=args.trust_remote_code)


def build_chat_encoder(
    args: ModelArgs,
    processor: ProcessorMixin | TextProcessor,
    grid: Callable[[], int] | None = None,
    types_of_suffix: bool = False,
) -> ChatEncoder:
    """Return the encoder of conversations, and add the tokens of the box format to the tokenizer.

    `grid` returns the patches on each side of an image in the vision tower; it is called if `args` name a MaskHead.
    `types_of_suffix`: see `ChatEncoder`.
    """
    box_format = build_box_format(args)
    tokens = [AddedToken(token, special=True, normalized=False) for token in box_format.tokens]
    processor.tokenizer.add_tokens(tokens, special_tokens=True)
    marks = MarkWriter(box_format, pad_to_square=bool(args.pad_to_square), mask_size=_mask_size(args, grid))
    return ChatEncoder(processor, marks=marks, types_of_suffix=types_of_suffix, **encoder_options(args))


def build_box_format(args: ModelArgs) -> BoxFormat:
    """Return the format of boxes in texts; raise `ConfigError` if format and heads exclude each other."""
    if args.box_format is None:
        return PerceptionToken() if args.heads else NormalizedText()
    box_format: BoxFormat = build(BOX_FORMATS, args.box_format, "model_args.box_format")
    if box_format.needs_heads != bool(args.heads):
        problem = "needs model_args.heads" if box_format.needs_heads else "writes boxes as text, but heads read a token"
        raise ConfigError(f"model_args.box_format {args.box_format['type']} {problem}: remove box_format or heads")
    return box_format


def _mask_size(args: ModelArgs, grid: Callable[[], int] | None) -> int | None:
    """Return the side of a mask in pixels, or None without a MaskHead. Builds the head on `meta`, without weights.

    Raise `ConfigError` if a head reads the image and the vision tower has no grid.
    """
    if grid is None or image_reader(args.heads) is None:
        return None
    vision = VisionShape(width=1, layers=1, grid=grid())
    for name, options in args.heads.items():
        if HEADS.find(options["type"]) is MaskHead:
            with torch.device("meta"):
                head: MaskHead = build(HEADS, options, f"model_args.heads.{name}", width=1, vision=vision)
            return head.size
    return None
