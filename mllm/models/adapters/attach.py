"""Attachment of a LoRA adapter to a model: fresh, continued, stacked on a frozen adapter, or after a merge."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mllm.errors import ConfigError
from mllm.models.adapters.files import SavedAdapter, load_adapter, read_adapter
from mllm.models.adapters.merge import merged_weights
from mllm.models.adapters.peft_targets import names_as_written
from mllm.models.adapters.targets import matching, resolve_target

logger = logging.getLogger(__name__)

TRAINED = "default"
"""Name in PEFT of the adapter that is trained."""
FROZEN = "base"
"""Name in PEFT of the frozen adapter below it."""


class Mode(Enum):
    """Treatment of the adapter at `adapter_path`."""

    FRESH = "there is no saved adapter"
    CONTINUE = "it is trained further"
    MERGE = "it is merged into the weights"
    STACK = "it stays frozen below a fresh adapter"


def choose_mode(saved: SavedAdapter | None, lora_r: int | None, merge_lora: bool) -> Mode:
    """Return the treatment of a saved adapter: with its own rank, or without `lora_r`, it is continued."""
    if saved is None:
        return Mode.FRESH
    if merge_lora:
        return Mode.MERGE
    return Mode.CONTINUE if lora_r in (None, saved.config.r) else Mode.STACK


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
    """Return `model` with the adapter to be trained. The adapter is in fp32, the base is frozen.

    `adapter_path` is the adapter to start from, see `choose_mode`; it keeps the rank and alpha of its own
    adapter_config.json. A fresh adapter has rank `lora_r`. Without both, the model is returned unchanged. `targets` are
    the patterns of the model family, see `resolve_target`. Raise `ConfigError` if the options contradict each other.
    """
    saved = None if adapter_path is None else read_adapter(adapter_path)
    mode = choose_mode(saved, lora_r, merge_lora)
    if mode is Mode.CONTINUE:
        assert saved is not None
        _refuse_contradictions(saved, lora_alpha=lora_alpha, use_rslora=use_rslora, use_dora=use_dora)
        return load_adapter(model, saved, TRAINED, targets, lora_dropout=lora_dropout)
    fresh = None
    if lora_r is not None:
        pattern = resolve_target(model, lora_target, targets)
        fresh = LoraConfig(
            r=lora_r,
            lora_alpha=_as_integer(lora_r if lora_alpha is None else lora_alpha),
            lora_dropout=lora_dropout,
            target_modules=pattern,
            fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in matching(pattern, model)),
            use_rslora=use_rslora,
            use_dora=use_dora,
            task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        )
    if mode is Mode.STACK:
        assert saved is not None and fresh is not None
        return _add_stacked(model, saved, fresh, targets)
    if mode is Mode.MERGE:
        assert saved is not None
        model = merged_weights(load_adapter(model, saved, TRAINED, targets))
    return model if fresh is None else _add_fresh(model, fresh)


def _as_integer(alpha: float) -> Any:
    """Return alpha as `int`, the type of PEFT's config, if it is an integer. PEFT computes with fractions too."""
    return int(alpha) if alpha == int(alpha) else alpha


def _add_fresh(model: PreTrainedModel, fresh: LoraConfig) -> PeftModel:
    """Return `model` with a fresh adapter. The outputs are those of the model."""
    with names_as_written():
        adapted = PeftModel(model, fresh, TRAINED)
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and fresh.use_dora:
            # PEFT computes the norms in the base's dtype. In bf16 they are off by 2^-9, which changes the outputs.
            base = layer.get_base_layer()
            weight = dequantize_module_weight(base).detach().float()
            weight = weight.T if isinstance(base, Conv1D) else weight  # [out, in]
            magnitude: Any = layer.lora_magnitude_vector[TRAINED]
            magnitude.weight.data = torch.linalg.vector_norm(weight.flatten(1), dim=1).view_as(magnitude.weight)
    return adapted


def _add_stacked(
    model: PreTrainedModel, saved: SavedAdapter, fresh: LoraConfig, targets: Mapping[str, str]
) -> PeftModel:
    """Return `model` with a frozen saved adapter and a fresh one. Both are active in the forward pass."""
    if fresh.use_dora or saved.config.use_dora:
        raise ConfigError(
            f"adapter_path = '{saved.source}' (rank {saved.config.r}) and lora_r = {fresh.r} would be two adapters, "
            "but DoRA adapters cannot be combined: set lora_r to the same rank to continue it, or merge_lora = True"
        )
    adapted = load_adapter(model, saved, FROZEN, targets)
    with names_as_written():
        adapted.add_adapter(TRAINED, fresh)
    adapted.set_adapter(TRAINED)
    tuner: Any = adapted.base_model
    tuner.set_adapter([FROZEN, TRAINED])
    for name, parameter in adapted.named_parameters():
        if f".{FROZEN}." in name:
            parameter.requires_grad_(False)
    logger.info("a fresh adapter of rank %d is stacked on the saved one, which stays frozen", fresh.r)
    return adapted


def _refuse_contradictions(saved: SavedAdapter, **options: float | bool | None) -> None:
    """Raise `ConfigError` if an option differs from the adapter that is continued."""
    for key, value in options.items():
        saved_value = vars(saved.config)[key]
        if value and value != saved_value:
            raise ConfigError(
                f"{key} = {value} contradicts the adapter to be continued, '{saved.source}', which has {key} = "
                f"{saved_value}; remove {key}, or set another lora_r to train a fresh adapter on top of it"
            )
