"""Base class of all trained models: a backbone of transformers with an adapter, and heads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from typing_extensions import Self

from mllm.errors import ConfigError
from mllm.models.adapters.full import token_tables
from mllm.models.adapters.names import adapter_parameter_names

EXTRA_PARTS = ("heads", "rows", "fusion")
"""Names of the submodules outside the backbone."""
WRAPPERS = re.compile(r"^backbone\.(base_model\.model\.)?")
"""Part of a parameter's name that is not part of its name in the model of transformers."""


class TrainableModel(nn.Module):
    """A backbone of transformers, or the `peft.PeftModel` around one, with heads.

    `towers` maps the parts of the backbone to the prefix of their parameter names, such as
    `{"vision": "model.vision_tower"}`. Subclasses implement the protocol `mllm.protocols.Model`.
    """

    generates_text: bool
    """False: the model predicts measures."""

    def __init__(self, backbone: nn.Module, towers: dict[str, str], heads: dict[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.towers = towers
        self.heads = nn.ModuleDict(heads or {})
        self.tapped: dict[str, int] = {}
        """Width of each tapped layer by module path, and the side of their `grid`."""
        self.autocast_dtype: torch.dtype | None = None
        """Dtype of matrix products if weights in fp32 lie between weights in half precision; None: that of weights."""
        tables = {id(table) for table in token_tables(self.pretrained)}
        self._tables = {name for name, parameter in self.named_parameters() if id(parameter) in tables}

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of all modules except BatchNorms, none of which trains.

        In training mode one would mix the samples of a batch, and change its statistics, which no export contains.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @property
    def pretrained(self) -> PreTrainedModel:
        """Return the model of transformers, including injected adapter layers."""
        backbone: Any = self.backbone
        model = backbone if isinstance(backbone, PreTrainedModel) else backbone.get_base_model()
        assert isinstance(model, PreTrainedModel)
        return model

    def enable_checkpointing(self, options: dict[str, Any], **layers: Any) -> None:
        """Turn gradient checkpointing on: activations are recomputed in the backward pass. Never reentrant.

        `options` are passed to `torch.utils.checkpoint`, `layers` to `gradient_checkpointing_enable` of transformers.
        """
        model = self.pretrained
        for module in model.modules():
            timm_model: Any = dict(module.named_children()).get("timm_model")  # of transformers' TimmWrapperModel
            if timm_model is not None and self.trains("vision"):
                from timm.layers.config import set_reentrant_ckpt  # here, because timm takes a second to import

                set_reentrant_ckpt(False)  # transformers does not pass its options to timm
                timm_model.set_grad_checkpointing(True)
        has_layers = any("gradient_checkpointing" in vars(module) for module in model.modules())
        if has_layers and model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable(options, **layers)
            # transformers makes the inputs of every tower require gradients: a frozen tower would run backward too.
            model.disable_input_require_grads()

    def trains(self, tower: str) -> bool:
        """Return True if a parameter of a tower is trainable."""
        return any(
            parameter.requires_grad and self.tower_of(name) == tower for name, parameter in self.named_parameters()
        )

    def tower_of(self, parameter: str) -> str:
        """Return the tower of a parameter of this module, given its name: 'other' if it is in none.

        The token embedding and the output projection belong to 'language' if they are in no tower.
        """
        part = parameter.partition(".")[0]
        if part in EXTRA_PARTS:
            return part
        for tower, prefix in self.towers.items():
            if f"{prefix}." in parameter:
                return tower
        return "language" if parameter in self._tables else "other"

    def computing(self) -> AbstractContextManager[Any]:
        """Return a context for forward passes outside of the trainer, which turns autocast on itself."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.pretrained.device.type, self.autocast_dtype)

    def freeze_as_teacher(self) -> None:
        """Freeze all parameters."""
        self.requires_grad_(False)

    def fit_measures(self, known: Mapping[str, Sequence[float]]) -> None:
        """Do nothing: this model has no measure head."""

    def own_logits(self, student: dict[str, Tensor], sample: int, positions: Tensor) -> Tensor:
        """Raise `TypeError`: only a model that generates text has logits."""
        raise TypeError(f"{type(self).__name__} has no logits")

    def tap(self, layers: Sequence[int | str] | None, count: int, grid: int) -> list[tuple[str, int]]:
        """Raise `ConfigError`: only a vision model has layers to tap."""
        raise ConfigError("only the layers of a vision model can be tapped: set part='vision'")

    def trained_state(self) -> dict[str, Tensor]:
        """Return all trained tensors that are not part of an adapter.

        Names begin with `heads.`, `rows.`, `fusion.`, or the name of a tower and the name inside it.
        """
        return {name: parameter.detach() for name, parameter in self._trained_parameters().items()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Copy the tensors of `trained_state` of an equal model. Raise `ConfigError` if names or shapes differ."""
        parameters = self._trained_parameters()
        missing, unexpected = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
        if missing or unexpected:
            difference = f"lack {missing[0]}" if missing else f"have {unexpected[0]}, which the model does not have"
            raise ConfigError(
                f"the trained tensors outside the adapter {difference}: heads, box_format and trainable must be as in "
                "training"
            )
        for name, parameter in parameters.items():
            if parameter.shape != state[name].shape:
                raise ConfigError(
                    f"{name} has shape {tuple(state[name].shape)}, but the model needs {tuple(parameter.shape)}: "
                    "heads and box_format must be as in training"
                )
            with torch.no_grad():
                parameter.copy_(state[name])

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters outside adapters, under names without the prefixes of the backbone."""
        trained = {}
        adapter_names = adapter_parameter_names(self)
        for name, parameter in self.named_parameters():
            tower = self.tower_of(name)
            if tower in EXTRA_PARTS:
                trained[name] = parameter
            elif parameter.requires_grad and name not in adapter_names:
                trained[f"{tower}.{self._name_in(tower, name)}"] = parameter
        return trained

    def _name_in(self, tower: str, name: str) -> str:
        """Return the name of a parameter inside its tower, or in the model of transformers if it is in no tower."""
        prefix = self.towers.get(tower)
        inside = "" if prefix is None else name.partition(f"{prefix}.")[2]
        return inside or WRAPPERS.sub("", name)
