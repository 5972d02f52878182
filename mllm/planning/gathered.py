"""Weights that an engine gathers while it computes.

They are in addition to the shards, which each process keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mllm.engine.learner import Learner

LIVE = 10**9
"""Number of gathered parameters above which ZeRO-3 releases those that are not used soon (`stage3_max_live_parameters`
and `stage3_max_reuse_distance` of DeepSpeed 0.19, `runtime/zero/config.py`)."""
LAYERS = 2
"""Number of layers that FSDP2 has gathered at a time: the one that computes, and the next one, which is fetched before
(`fully_shard` of torch; implicit prefetching)."""


def gathered_bytes(learner: Learner, shards: str, options: Mapping[str, Any]) -> int:
    """Return the most bytes of gathered weights in an update.

    FSDP2 gathers a layer when it computes. All parameters outside of layers, such as the vocabulary, are one group,
    which stays gathered during an update (`fsdp2_prepare_model` of accelerate 1.15). ZeRO-3 gathers each parameter when
    it is used, and releases it when it has `LIVE` others, unless it is used again soon.

    Args:
        learner: The learner with all weights.
        shards: The engine: 'fsdp' or 'zero3'; others gather nothing.
        options: `fsdp_config` without the prefix of its keys, or the section `zero_optimization` of DeepSpeed.
    """
    if shards == "fsdp":
        if options.get("reshard_after_forward") is False:
            return _bytes(list(learner.parameters()))
        return _of_layers(learner, options)
    if shards == "zero3":
        return _of_zero(list(learner.parameters()), options)
    return 0


def _of_layers(learner: Learner, options: Mapping[str, Any]) -> int:
    """Return the bytes of the parameters outside of layers and of two of the largest layers."""
    names = options.get("transformer_layer_cls_to_wrap") or learner._no_split_modules
    classes = {names} if isinstance(names, str) else set(names)
    if options.get("auto_wrap_policy") == "NO_WRAP":
        classes = set()
    layers = [module for module in learner.modules() if type(module).__name__ in classes]
    sizes = sorted(_bytes(list(layer.parameters())) for layer in layers)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = [parameter for parameter in learner.parameters() if id(parameter) not in inside]
    return _bytes(outside) + sum(sizes[-LAYERS:])


def _of_zero(parameters: Sequence[nn.Parameter], options: Mapping[str, Any]) -> int:
    """Return the bytes of as many parameters as ZeRO-3 keeps, and of the largest one, which is fetched in addition."""
    limits = [options.get(f"stage3_{name}", LIVE) for name in ("max_live_parameters", "max_reuse_distance")]
    limit = max(LIVE if value == "auto" else int(value) for value in limits)
    numbers, size = sum(parameter.numel() for parameter in parameters), _bytes(parameters)
    largest = max((_bytes([parameter]) for parameter in parameters), default=0)
    return min(size, round(limit * size / max(1, numbers)) + largest)


def _bytes(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
