"""Adapters on a model: attached fresh, continued, or stacked on a frozen one; combined, saved, merged and counted."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.adapters.files import SavedAdapter, adapter_tensors, load_adapter, read_adapter, write_adapter
from mllm.models.adapters.targets import pattern_of, resolve_target
from mllm.models.backbone.half_safe import HalfSafeLinear
from mllm.structures import Model

logger = logging.getLogger(__name__)

FRESH = "default"
"""PEFT's name of the adapter that trains."""
START = "base"
"""PEFT's name of a frozen adapter below it."""


def attach_adapter(
    model: PreTrainedModel,
    *,
    targets: Mapping[str, str],
    adapter_path: str | None = None,
    lora_r: int | None = 16,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    lora_target: str = "language",
    use_rslora: bool = False,
    use_dora: bool = False,
    merge_lora: bool = False,
) -> PeftModel | PreTrainedModel:
    """`model` with the adapter that is to be trained, in fp32 whatever the base's dtype, and the base frozen.

    `adapter_path` says where to start, `lora_r` what to train. With the starting adapter's own rank, or None, it is
    continued; with another rank it is kept frozen and a fresh one is stacked on it; with `merge_lora` it is folded into
    the weights first. Its rank and alpha are those of its own adapter_config.json. Without both, `model` comes back
    untouched. `targets` are the family's patterns by name, see `resolve_target`. Raises `ConfigError`.
    """
    saved = None if adapter_path is None else read_adapter(adapter_path)
    continues = saved is not None and not merge_lora and lora_r in (None, saved.config.r)
    fresh = None
    if lora_r is not None and not continues:
        alpha = lora_r if lora_alpha is None else lora_alpha
        fresh = LoraConfig(
            r=lora_r,
            lora_alpha=_whole(alpha),
            lora_dropout=lora_dropout,
            target_modules=resolve_target(model, lora_target, targets),
            use_rslora=use_rslora,
            use_dora=use_dora,
            task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        )
    if saved is None:
        return model if fresh is None else _begin(model, fresh)
    if continues:
        _check_same(saved, lora_alpha=lora_alpha, use_rslora=use_rslora, use_dora=use_dora)
        return load_adapter(model, saved, FRESH, targets, lora_dropout=lora_dropout)
    if merge_lora:
        merged = merged_weights(load_adapter(model, saved, FRESH, targets))
        return merged if fresh is None else _begin(merged, fresh)
    assert fresh is not None
    if use_dora or saved.config.use_dora:
        raise ConfigError(
            f"adapter_path = '{saved.source}' (rank {saved.config.r}) and lora_r = {lora_r} would be two adapters, and "
            "with DoRA two cannot be joined into one: set lora_r to the same rank to continue it, or merge_lora = True"
        )
    return _stack(load_adapter(model, saved, START, targets), fresh)


def _whole(alpha: float) -> Any:
    """The number as PEFT's config types it; a fraction is as good to PEFT."""
    return int(alpha) if alpha == int(alpha) else alpha


def _begin(model: PreTrainedModel, fresh: LoraConfig) -> PeftModel:
    """`model` with a fresh adapter that changes nothing yet."""
    adapted = PeftModel(model, fresh, FRESH)
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and fresh.use_dora:
            # PEFT takes the rows' lengths in the base's dtype: off by 2^-9 in bf16, so it would not begin as the base.
            weight = dequantize_module_weight(layer.get_base_layer()).detach().float()
            magnitude: Any = layer.lora_magnitude_vector[FRESH]
            magnitude.weight.data = torch.linalg.vector_norm(weight.flatten(1), dim=1).view_as(magnitude.weight)
    return adapted


def _stack(model: PeftModel, fresh: LoraConfig) -> PeftModel:
    """A trainable adapter above the frozen one that `model` has; both take part in the forward."""
    model.add_adapter(FRESH, fresh)
    model.set_adapter(FRESH)
    tuner: Any = model.base_model
    tuner.set_adapter([START, FRESH])
    for name, parameter in model.named_parameters():
        if f".{START}." in name:
            parameter.requires_grad_(False)
    logger.info("a fresh adapter of rank %d is stacked on it, which stays frozen", fresh.r)
    return model


def _check_same(saved: SavedAdapter, **asked: float | bool | None) -> None:
    """Refuse a config that says other than the adapter that it continues."""
    for key, value in asked.items():
        own = vars(saved.config)[key]
        if value and value != own:
            raise ConfigError(
                f"{key} = {value} contradicts the adapter to be continued, '{saved.source}', which has {key} = {own}; "
                f"leave {key} out, or give another lora_r to train a fresh adapter beside it"
            )


def combined_adapter(model: PeftModel) -> tuple[dict[str, Tensor], LoraConfig]:
    """The tensors and the config of one adapter that does what all adapters of `model` do together.

    A stack is concatenated along the rank, each scaling folded into its B, and written with alpha = rank: exact for
    LoRA and rsLoRA alike. A layer that only one of them adapts is filled with zeros up to the common rank, since a rank
    per layer (`rank_pattern`) is not read by every consumer. Raises `ConfigError` for a stack with DoRA.
    """
    configs: dict[str, Any] = model.peft_config
    if len(configs) == 1:
        name, config = next(iter(configs.items()))
        return adapter_tensors(model, name), copy.deepcopy(config)
    if any(config.use_dora for config in configs.values()):
        raise ConfigError("a stack with DoRA cannot be joined into one adapter; merge it instead")
    base = _base(model)
    layers: dict[str, Any] = {name: layer for name, layer in base.named_modules() if isinstance(layer, LoraLayer)}
    rank = max(sum(layer.r.values()) for layer in layers.values())
    tensors = {}
    for name, layer in layers.items():
        a = torch.cat([layer.lora_A[adapter].weight.detach() for adapter in layer.r], dim=0)
        b = torch.cat([layer.lora_B[adapter].weight.detach() * layer.scaling[adapter] for adapter in layer.r], dim=1)
        free = rank - a.shape[0]
        a = torch.cat([a, a.new_zeros(free, *a.shape[1:])], dim=0)
        b = torch.cat([b, b.new_zeros(b.shape[0], free, *b.shape[2:])], dim=1)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern_of(layers, base), task_type="CAUSAL_LM")
    return tensors, config


def save_adapter(model: PeftModel, folder: str | Path, base_name: str) -> Path:
    """Write the adapter of `model`, a stack as one, so that `peft.PeftModel.from_pretrained(base, folder)` reads it."""
    tensors, config = combined_adapter(model)
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    return write_adapter(folder, tensors, config)


def merged_weights(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    """The base of `model` with its adapters folded into the weights, in place; tied weights stay tied.

    Raises `ConfigError` where the base is stored in 4 or 8 bits, or in fp16 for a model that overflows it.
    """
    if not isinstance(model, PeftModel):
        return model
    base = _base(model)
    if any(isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt | HalfSafeLinear) for module in base.modules()):
        raise ConfigError(
            "an adapter can only be merged into full-precision weights: load the model in fp32 or bf16, without "
            "load_in_4bit and load_in_8bit, as pipeline/merge.py does"
        )
    tied = _is_tied(base)
    merged = model.merge_and_unload(safe_merge=True)
    assert isinstance(merged, PreTrainedModel) and _is_tied(merged) == tied
    return merged


def _base(model: PeftModel) -> PreTrainedModel:
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


def _is_tied(model: PreTrainedModel) -> bool:
    output = model.get_output_embeddings()
    return isinstance(output, nn.Linear) and output.weight is model.get_input_embeddings().weight


@dataclass(frozen=True)
class TowerCount:
    """What trains in one tower of a model."""

    tower: str
    tensors: int
    """Trainable tensors."""
    parameters: int
    """Numbers in them."""
    total: int
    """Numbers in the whole tower, frozen and trainable."""

    @property
    def percent(self) -> float:
        """The trainable share of the tower, in percent."""
        return 100 * self.parameters / self.total


def trainable_report(model: Model) -> list[TowerCount]:
    """What trains in each tower of `model`, towers in the order of its parameters."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        count = counts.setdefault(model.tower_of(name), [0, 0, 0])
        size = _size(parameter)
        count[0] += parameter.requires_grad
        count[1] += size if parameter.requires_grad else 0
        count[2] += size
    return [TowerCount(tower, *count) for tower, count in counts.items()]


def _size(parameter: Any) -> int:
    """How many numbers a parameter stands for; two lie in a byte of a 4-bit weight."""
    state = parameter.quant_state if isinstance(parameter, bnb.nn.Params4bit) else None
    return parameter.numel() if state is None else math.prod(state.shape)


def trainable_table(counts: list[TowerCount]) -> str:
    """The counts as lines of text, with their sum."""
    columns = zip(*[(count.tensors, count.parameters, count.total) for count in counts], strict=True)
    rows = [*counts, TowerCount("all", *map(sum, columns))]
    lines = [f"{'tower':<12}{'tensors':>8}{'trainable':>14}{'of':>16}{'percent':>9}"]
    lines += [f"{r.tower:<12}{r.tensors:>8}{r.parameters:>14,}{r.total:>16,}{r.percent:>9.3f}" for r in rows]
    return "\n".join(lines)
