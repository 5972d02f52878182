"""Several adapters as one, each with a weight: `cat` is their exact weighted sum, the others are approximations.

PEFT's `linear`, `ties` and `dare_*` combine the A matrices and the B matrices apart, so that the product holds terms
that belong to no adapter ((B1 + B2)(A1 + A2) has B1 A2 in it); only `cat` has none. PEFT also gives the sum the first
adapter's config, which is wrong for rsLoRA; here every scaling is folded into its B first.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import get_pattern_key
from torch import Tensor
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.adapters.files import KEY, SavedAdapter, adapter_tensors, load_adapter

logger = logging.getLogger(__name__)

COMBINATIONS = ("cat", "linear", "ties", "dare_linear", "dare_ties")
SPARSE = ("ties", "dare_linear", "dare_ties")
"""Those that keep only a share of each adapter, its density."""
RANDOM = ("dare_linear", "dare_ties")
SEED = 0
"""What the dropped numbers of DARE are drawn from."""
COMBINED = "combined"
"""PEFT's name of the result."""


def check_combination(adapters: int, weights: Sequence[float] | None, combination: str, density: float | None) -> None:
    """Refuses what does not go together; the sentences name the options of `mllm merge`."""
    if weights is not None and len(weights) != adapters:
        raise ConfigError(f"--weights has {len(weights)} numbers for {adapters} adapters: give one for each --adapter")
    if weights is not None and not all(math.isfinite(weight) and weight != 0 for weight in weights):
        raise ConfigError("--weights must be finite and not 0: leave out an adapter that is not to take part")
    if combination in SPARSE and (density is None or not 0 < density <= 1):
        raise ConfigError(f"--combination {combination} needs --density, the share of each adapter to keep, in (0, 1]")
    if combination not in SPARSE and density is not None:
        raise ConfigError(f"--density is for --combination {', '.join(SPARSE)}; {combination} keeps all: remove it")


def combined(
    model: PreTrainedModel,
    adapters: Sequence[SavedAdapter],
    weights: Sequence[float],
    *,
    combination: str = "cat",
    density: float | None = None,
) -> SavedAdapter:
    """The weighted combination of several adapters of `model`, which is only asked for its layers, in fp32.

    `model` holds the adapters afterwards and must not be used. Raises `ConfigError` for DoRA, for modules whose ranks
    must be equal and are not, and for adapters of another model.
    """
    for adapter in adapters:
        if adapter.config.use_dora:
            raise ConfigError(f"'{adapter.source}' is a DoRA adapter, and several adapters can only be joined as LoRA")
    plain = [without_scaling(adapter) for adapter in adapters]
    if combination != "cat" and len({adapter.config.r for adapter in plain}) > 1:
        told = ", ".join(f"'{adapter.source}' has {adapter.config.r}" for adapter in plain)
        raise ConfigError(f"--combination {combination} needs adapters of one rank, and {told}: use --combination cat")
    names = [f"part{number}" for number in range(len(plain))]
    adapted: PeftModel | PreTrainedModel = model
    for name, adapter in zip(names, plain, strict=True):
        adapted = load_adapter(adapted, adapter, name, {})
    assert isinstance(adapted, PeftModel)
    tuner: Any = adapted.base_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        tuner.add_weighted_adapter(names, list(weights), COMBINED, combination_type=combination, density=density)
    config: Any = adapted.peft_config[COMBINED]
    logger.info("%d adapters are combined (%s): rank %d", len(plain), combination, config.r)
    return SavedAdapter(COMBINED, config, adapter_tensors(adapted, COMBINED))


def without_scaling(saved: SavedAdapter) -> SavedAdapter:
    """The same adapter with alpha = rank and without rsLoRA, each module's scaling folded into its B matrix.

    Modules of a smaller rank (`rank_pattern`) are filled with zeros up to the largest.
    """
    config: Any = copy.deepcopy(saved.config)
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    tensors: dict[str, Tensor] = {}
    for key, tensor in saved.tensors.items():
        match = KEY.fullmatch(key)
        assert match is not None
        module, part = match["module"], match["part"]
        own = config.rank_pattern.get(get_pattern_key(config.rank_pattern, module), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
        scaling = alpha / (math.sqrt(own) if config.use_rslora else own)
        is_b = "_B" in part
        # A is [rank, in] and B [out, rank], of embeddings as of Linear and convolutional layers.
        shape = list(tensor.shape)
        shape[1 if is_b else 0] = rank
        filled = tensor.new_zeros(shape, dtype=torch.float32)
        filled[tuple(slice(length) for length in tensor.shape)] = tensor.float() * (scaling if is_b else 1.0)
        tensors[key] = filled
    config.r, config.lora_alpha, config.use_rslora = rank, rank, False
    config.rank_pattern, config.alpha_pattern = {}, {}
    return replace(saved, config=config, tensors=tensors)
