"""Heads of a model, from `model_args.heads`, with the same initial weights in every process and run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.backbone.vision_layers import VisionLayers, image_head_message, image_reader
from mllm.models.encoding.text_processor import TextProcessor
from mllm.models.heads import BoxHead, MaskHead, RegressionHead, VisionShape
from mllm.registry import HEADS, build


def build_heads(
    model: PreTrainedModel, processor: ProcessorMixin | TextProcessor, towers: Mapping[str, str], args: ModelArgs
) -> tuple[dict[str, nn.Module], VisionLayers | None]:
    """Return the heads for boxes and masks, and the vision layers that they read (None if no head reads the image)."""
    heads: dict[str, nn.Module] = {}
    layers = None
    if not args.heads:  # a config without heads may have no width (BLT)
        return heads, layers
    width = model.config.get_text_config().hidden_size
    for name, options in sorted(args.heads.items(), key=lambda item: item[0] != "mask"):  # a box may read the mask
        kind = HEADS.find(options["type"])
        provided: dict[str, Any] = {"width": width}
        if (reader := image_reader({name: options})) is not None:
            if "vision" not in towers:
                raise ConfigError(image_head_message(reader, type(model).__name__))
            if layers is None:
                tower = dict(model.named_modules())[towers["vision"]]
                layers = VisionLayers(tower, model.config.vision_config, processor, reader)
            provided["vision"] = VisionShape(layers.width, len(layers), layers.grid)
        if kind is BoxHead and isinstance(mask := heads.get("mask"), MaskHead):
            provided["mask_size"] = mask.size
        heads[name] = build_head(name, options, **provided)
    return heads, layers


def build_regression_head(args: ModelArgs, width: int) -> RegressionHead | None:
    """Return the head for measures, reading features of `width`; None for a teacher, which has no head."""
    if not args.heads:
        return None
    head = build_head("measures", args.heads["measures"], width=width)
    assert isinstance(head, RegressionHead), "the rules refuse other heads"
    return head


def build_head(name: str, options: Mapping[str, Any], **provided: Any) -> nn.Module:
    """Return a head with the same initial weights in every process and run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head: nn.Module = build(HEADS, options, f"model_args.heads.{name}", **provided)
        return head
