"""Combination of several adapters into one.

For weighted sums, `cat` is exact and the other methods are approximations. PEFT's `linear`, `ties` and `dare_*` combine
the A matrices and the B matrices separately, so the product contains cross terms: (B1 + B2)(A1 + A2) includes B1 A2.
PEFT also gives the sum the config of the first adapter, which is wrong for rsLoRA. Here every scaling is folded into
its B matrix first.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from torch import Tensor
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.adapters.files import KEY, SavedAdapter, adapter_tensors, load_adapter, write_adapter
from mllm.models.adapters.merge import base_of
from mllm.models.adapters.targets import pattern_of

logger = logging.getLogger(__name__)

COMBINATIONS = ("cat", "linear", "ties", "dare_linear", "dare_ties")
SPARSE = ("ties", "dare_linear", "dare_ties")
"""Combinations that keep only a fraction of each adapter, its density."""
RANDOM = ("dare_linear", "dare_ties")
"""Combinations that drop elements at random."""
SEED = 0
"""Seed of the random combinations."""
COMBINED = "combined"
"""Name in PEFT of the combined adapter."""


def check_combination(adapters: int, weights: Sequence[float] | None, combination: str, density: float | None) -> None:
    """Raise `ConfigError` if the options of `mllm merge` contradict each other."""
    if weights is not None and len(weights) != adapters:
        raise ConfigError(f"--weights has {len(weights)} numbers for {adapters} adapters: set one for each --adapter")
    if weights is not None and not all(math.isfinite(weight) and weight != 0 for weight in weights):
        raise ConfigError("--weights must be finite and not 0: leave out an adapter that should have no effect")
    if combination in SPARSE and (density is None or not 0 < density <= 1):
        raise ConfigError(
            f"--combination {combination} needs --density, the fraction of each adapter to keep, in (0, 1]"
        )
    if combination not in SPARSE and density is not None:
        raise ConfigError(
            f"--density is for --combination {', '.join(SPARSE)}; {combination} keeps all elements: remove --density"
        )


def combined(
    model: PreTrainedModel,
    adapters: Sequence[SavedAdapter],
    weights: Sequence[float],
    *,
    combination: str = "cat",
    density: float | None = None,
) -> SavedAdapter:
    """Return the weighted combination of saved adapters, in fp32.

    Only the layers of `model` are used, not its weights. It contains the adapters afterwards and must not be used.
    Raise `ConfigError` for DoRA, for different ranks unless `combination` is 'cat', and for adapters of another model.
    """
    for adapter in adapters:
        if adapter.config.use_dora:
            raise ConfigError(f"'{adapter.source}' is a DoRA adapter, but only LoRA adapters can be combined")
    unscaled = [without_scaling(adapter) for adapter in adapters]
    if combination != "cat" and len({adapter.config.r for adapter in unscaled}) > 1:
        ranks = ", ".join(f"'{adapter.source}' has {adapter.config.r}" for adapter in unscaled)
        raise ConfigError(f"--combination {combination} needs adapters of one rank, but {ranks}: use --combination cat")
    names = [f"part{number}" for number in range(len(unscaled))]
    adapted: PeftModel | PreTrainedModel = model
    for name, adapter in zip(names, unscaled, strict=True):
        adapted = load_adapter(adapted, adapter, name, {})
    assert isinstance(adapted, PeftModel)
    tuner: Any = adapted.base_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        tuner.add_weighted_adapter(names, list(weights), COMBINED, combination_type=combination, density=density)
    config: Any = adapted.peft_config[COMBINED]
    logger.info("%d adapters are combined (%s): rank %d", len(unscaled), combination, config.r)
    return SavedAdapter(COMBINED, config, adapter_tensors(adapted, COMBINED))


def without_scaling(saved: SavedAdapter) -> SavedAdapter:
    """Return an equal adapter with alpha = rank and without rsLoRA, each scaling folded into its B matrix.

    Modules with a smaller rank (`rank_pattern`) are padded with zeros to the largest rank.
    """
    config: Any = copy.deepcopy(saved.config)
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    tensors: dict[str, Tensor] = {}
    for key, tensor in saved.tensors.items():
        match = KEY.fullmatch(key)
        assert match is not None
        module, part = match["module"], match["part"]
        module_rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, module), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
        scaling = alpha / (math.sqrt(module_rank) if config.use_rslora else module_rank)
        is_b = "_B" in part
        # A is [rank, in] and B is [out, rank], for embeddings as for Linear and convolutional layers.
        shape = list(tensor.shape)
        shape[1 if is_b else 0] = rank
        padded = tensor.new_zeros(shape, dtype=torch.float32)
        padded[tuple(slice(length) for length in tensor.shape)] = tensor.float() * (scaling if is_b else 1.0)
        tensors[key] = padded
    config.r, config.lora_alpha, config.use_rslora = rank, rank, False
    config.rank_pattern, config.alpha_pattern = {}, {}
    return replace(saved, config=config, tensors=tensors)


def stacked_as_one(model: PeftModel) -> tuple[dict[str, Tensor], LoraConfig]:
    """Return tensors and config of one adapter with the effect of all adapters of `model`.

    A stack is concatenated along the rank, each scaling folded into its B matrix, with alpha = rank. This is exact for
    LoRA and rsLoRA. A layer that not all adapters change is padded with zeros to the common rank, because not every
    program reads a rank per layer (`rank_pattern`). Raise `ConfigError` for a stack with DoRA.
    """
    configs: dict[str, Any] = model.peft_config
    if len(configs) == 1:
        name, config = next(iter(configs.items()))
        return adapter_tensors(model, name), copy.deepcopy(config)
    if any(config.use_dora for config in configs.values()):
        raise ConfigError("a stack with DoRA cannot be combined into one adapter; merge it instead")
    base = base_of(model)
    layers: dict[str, Any] = {name: layer for name, layer in base.named_modules() if isinstance(layer, LoraLayer)}
    rank = max(sum(layer.r.values()) for layer in layers.values())
    tensors = {}
    for name, layer in layers.items():
        a = torch.cat([layer.lora_A[adapter].weight.detach() for adapter in layer.r], dim=0)
        b = torch.cat([layer.lora_B[adapter].weight.detach() * layer.scaling[adapter] for adapter in layer.r], dim=1)
        padding = rank - a.shape[0]
        a = torch.cat([a, a.new_zeros(padding, *a.shape[1:])], dim=0)
        b = torch.cat([b, b.new_zeros(b.shape[0], padding, *b.shape[2:])], dim=1)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    first = next(iter(configs.values()))
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=pattern_of(layers, base),
        fan_in_fan_out=first.fan_in_fan_out,
        task_type=first.task_type,
    )
    return tensors, config


def save_adapter(model: PeftModel, folder: str | Path, base_name: str) -> Path:
    """Write the adapter of `model`, a stack as one, in the format of `peft.PeftModel.from_pretrained`."""
    tensors, config = stacked_as_one(model)
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    return write_adapter(folder, tensors, config)
