"""Building of a model with its adapter and encoder from `model_args`."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from mllm.config.defaults import refuse_absent_keys, with_defaults
from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.config.trainable import trained_parts
from mllm.family import FAMILIES
from mllm.models.adapters.targets import matching, resolve_target
from mllm.models.builder.build_family import build_model
from mllm.protocols import Bundle
from mllm.registry import MODELS


def load_pretrained(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Return the model of `args`, with the adapter that trains, and its encoder.

    A type without a builder in MODELS is built from its record. The base is frozen and in evaluation mode; quantized
    weights are on `hardware.device`, others in host memory. Raise `ConfigError` for options that cannot be satisfied.
    """
    build = MODELS.find(args.type) if args.type in MODELS.names() else build_model
    bundle = build(args, hardware)
    assert isinstance(bundle, Bundle)
    return bundle


def load_encoder(args: ModelArgs) -> Any:
    """Return the encoder that `load_pretrained` returns together with the model, without loading weights."""
    args = with_defaults(args)
    refuse_absent_keys(args)
    family = FAMILIES.find(args.type, args.part)
    return family.encoder(args, family.processor(args))


def count_lora(args: ModelArgs) -> int | None:
    """Return the number of parameters of the LoRA that `args` train, from the checkpoint's `config.json` alone.

    None if the rank is that of a starting adapter, or if other weights are trained: weights in full, or a vision part
    with its head. Raise `ConfigError` for a missing checkpoint and a `lora_target` that matches nothing.
    """
    family = FAMILIES.find(args.type, args.part)
    parts = trained_parts(args)
    if args.lora_r is None or family.skeleton is None or parts.lora_target is None or parts.full:
        return None
    model = family.skeleton(args)
    pattern = resolve_target(model, parts.lora_target, family.lora_targets(model))
    layers = [model.get_submodule(name) for name in matching(pattern, model)]
    return sum(_lora_size(layer, args.lora_r, args.use_dora) for layer in layers)


def _lora_size(layer: nn.Module, rank: int, use_dora: bool) -> int:
    """Return the number of parameters of the LoRA of a Linear or convolution layer. DoRA has one more for each output.

    The weight is [out, in, ...]; that of GPT-2's `Conv1D` is [in, out].
    """
    weight: Any = layer.weight
    shape = weight.shape[::-1] if isinstance(layer, Conv1D) else weight.shape
    return int(rank * (shape[0] + math.prod(shape[1:])) + use_dora * shape[0])
