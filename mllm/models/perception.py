"""The model that every type builds: a backbone that reads images and text, its vocabulary, and perhaps heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mllm.structures import Outputs


class PerceptionModel(nn.Module):
    """A backbone of transformers, asked for hidden states instead of logits.

    `backbone` is a `...ForConditionalGeneration` or a `peft.PeftModel` around one. `towers` names the parts of the
    backbone by the prefix of their parameters, such as `{"vision": "model.vision_tower"}`, for reports.
    """

    def __init__(self, backbone: nn.Module, towers: dict[str, str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.towers = towers

    @property
    def pretrained(self) -> PreTrainedModel:
        """The transformers model inside, adapters injected."""
        backbone: Any = self.backbone
        model = backbone if isinstance(backbone, PreTrainedModel) else backbone.get_base_model()
        assert isinstance(model, PreTrainedModel)
        return model

    def forward(self, **student: Tensor) -> Outputs:
        """The last hidden states [B, L, D] of a batch's keyword arguments, with the vocabulary beside them."""
        model = self.pretrained
        hidden_BLD = model.base_model(**student, use_cache=False, return_dict=True).last_hidden_state
        return Outputs(hidden_BLD, vocabulary=model.get_output_embeddings(), softcap=self.softcap)

    @property
    def softcap(self) -> float | None:
        """The bound of the final logits, where the checkpoint's config has one."""
        text: dict[str, Any] = self.pretrained.config.get_text_config().to_dict()
        return text.get("final_logit_softcapping")

    def trains(self, tower: str) -> bool:
        """Whether any parameter of a tower is trainable."""
        return any(
            parameter.requires_grad and self.tower_of(name) == tower for name, parameter in self.named_parameters()
        )

    def tower_of(self, parameter: str) -> str:
        """Which tower a parameter of this module belongs to, by its name."""
        for tower, prefix in self.towers.items():
            if f"{prefix}." in parameter:
                return tower
        return "other"
