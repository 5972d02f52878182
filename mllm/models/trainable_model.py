"""What every trained model shares: a backbone of transformers, perhaps with an adapter, and what trains beside it."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.config import set_reentrant_ckpt
from torch import Tensor, nn
from transformers import PreTrainedModel, TimmWrapperModel

from mllm.errors import ConfigError

OWN = ("heads", "rows", "fusion")
"""The parts of such a model that are not in the backbone."""
WHOLE = ("projector", "vision")
"""The towers of which parameters may train beside a LoRA or without one."""


class AdaptedModel(nn.Module):
    """A backbone of transformers or a `peft.PeftModel` around one, with heads beside it.

    `towers` names the parts of the backbone by the prefix of their parameters, such as
    `{"vision": "model.vision_tower"}`.
    """

    def __init__(self, backbone: nn.Module, towers: dict[str, str], heads: dict[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.towers = towers
        self.heads = nn.ModuleDict(heads or {})

    @property
    def pretrained(self) -> PreTrainedModel:
        """The transformers model inside, adapters injected."""
        backbone: Any = self.backbone
        model = backbone if isinstance(backbone, PreTrainedModel) else backbone.get_base_model()
        assert isinstance(model, PreTrainedModel)
        return model

    def enable_checkpointing(self, options: dict[str, Any], **layers: Any) -> None:
        """Computes layers again in the backward instead of keeping what they gave; never re-entrant.

        `options` are those of `torch.utils.checkpoint`, `layers` those of transformers' own method.
        """
        model = self.pretrained
        for module in model.modules():
            if isinstance(module, TimmWrapperModel) and self.trains("vision"):
                set_reentrant_ckpt(False)  # transformers does not hand its options on to timm
                module.timm_model.set_grad_checkpointing(True)
        if any("gradient_checkpointing" in vars(module) for module in model.modules()):
            model.gradient_checkpointing_enable(options, **layers)
            # It makes every tower's inputs ask for gradients, so a frozen one would be computed again and backwards.
            model.disable_input_require_grads()

    def trains(self, tower: str) -> bool:
        """Whether any parameter of a tower is trainable."""
        return any(
            parameter.requires_grad and self.tower_of(name) == tower for name, parameter in self.named_parameters()
        )

    def tower_of(self, parameter: str) -> str:
        """Which tower a parameter of this module belongs to, by its name."""
        part = parameter.partition(".")[0]
        if part in OWN:
            return part
        for tower, prefix in self.towers.items():
            if f"{prefix}." in parameter:
                return tower
        return "other"

    def trained_state(self) -> dict[str, Tensor]:
        """All that trains beside LoRA: `heads.*`, `rows.*`, `fusion.*`, `projector.*`, `vision.*`."""
        return {name: parameter.detach() for name, parameter in self._beside_lora().items()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Takes what `trained_state` of an equal model gave; raises `ConfigError` where it does not fit."""
        own = self._beside_lora()
        missing, strange = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or strange:
            what = f"lacks {missing[0]}" if missing else f"has {strange[0]}, which the model has not"
            raise ConfigError(
                f"what was trained beside the adapter {what}: heads and box_format must be as in training"
            )
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise ConfigError(
                    f"{name} has shape {tuple(state[name].shape)} where the model needs {tuple(parameter.shape)}: "
                    "heads and box_format must be as in training"
                )
            with torch.no_grad():
                parameter.copy_(state[name])

    def _beside_lora(self) -> dict[str, nn.Parameter]:
        """The trained parameters that are no adapter's, under names without the backbone's prefixes."""
        found = {}
        for name, parameter in self.named_parameters():
            tower = self.tower_of(name)
            if tower in OWN:
                found[name] = parameter
            elif tower in WHOLE and parameter.requires_grad and ".lora_" not in name:
                found[f"{tower}." + name.partition(f"{self.towers[tower]}.")[2]] = parameter
        return found
