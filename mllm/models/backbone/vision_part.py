"""The part of a model that sees, loaded without the rest: its vision tower and what carries it to the language model.

Nothing else of the checkpoint is read from the disk or stands in memory, so that a student or a teacher of images does
not cost a language model of billions of parameters. Modules keep the names that they have in the whole model: what is
trained here fits there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mllm.errors import ConfigError
from mllm.models.backbone.loading import load_model


class Wordless(PreTrainedModel):
    """A part of a model that has no words; libraries that ask for its embeddings are given an empty module."""

    def get_input_embeddings(self) -> nn.Module:
        """A module without parameters: nothing is tied to it."""
        return nn.Identity()

    def get_output_embeddings(self) -> None:
        """None: nothing is said."""


class Gemma3nVision(Wordless, Gemma3nForConditionalGeneration):
    """Gemma 3n without its language model and its audio tower."""

    _tied_weights_keys = {}
    _keys_to_ignore_on_load_unexpected = [r"language_model\.", r"audio", r"^lm_head\."]

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__(config)
        del self.lm_head, self.model.language_model, self.model.audio_tower, self.model.embed_audio


class Gemma3Vision(Wordless, Gemma3ForConditionalGeneration):
    """Gemma 3 (MedGemma) without its language model."""

    _tied_weights_keys = {}
    _keys_to_ignore_on_load_unexpected = [r"language_model\.", r"^lm_head\."]

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__(config)
        del self.lm_head, self.model.language_model


class SiglipVision(Wordless, SiglipVisionModel):
    """The vision tower of a SigLIP, such as MedSigLIP; its features are its last hidden states."""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_(scale|bias)$", r"^(vision_model\.)?head\."]

    def __init__(self, config: SiglipVisionConfig) -> None:
        config.vision_use_head = False  # a pooled feature has no places left
        super().__init__(config)

    def get_image_features(self, pixel_values: Tensor) -> Any:
        """What the other models' method of this name gives, with the features as `pooler_output` [V, N, D]."""
        output = self(pixel_values=pixel_values)
        output.pooler_output = output.last_hidden_state
        return output


@dataclass(frozen=True)
class Sight:
    """How one family sees."""

    kind: type[PreTrainedModel]
    towers: dict[str, str]
    """Where its parts are, by the prefix of their modules."""
    layers: str
    """The path of its tower's sequence of layers or stages."""


SIGHTS = {
    "gemma3n": Sight(
        Gemma3nVision,
        {"vision": "model.vision_tower", "projector": "model.embed_vision"},
        "model.vision_tower.timm_model.blocks",
    ),
    "gemma3": Sight(
        Gemma3Vision,
        {"vision": "model.vision_tower", "projector": "model.multi_modal_projector"},
        "model.vision_tower.encoder.layers",
    ),
    "siglip": Sight(SiglipVision, {"vision": ""}, "encoder.layers"),
    "siglip_vision_model": Sight(SiglipVision, {"vision": ""}, "encoder.layers"),
}
"""By the checkpoint's `model_type`; the last is what a SigLIP's tower alone is, as the exporter 'student' writes it."""


def load_vision(
    name: str,
    config: PretrainedConfig,
    *,
    precision: str,
    device: str,
    quantization_config: BitsAndBytesConfig | None = None,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The vision part of a checkpoint, frozen, in evaluation mode; raises `ConfigError` for other families."""
    if config.model_type not in SIGHTS:
        raise ConfigError(
            f"part='vision' loads the vision part of {', '.join(SIGHTS)} checkpoints, and '{name}' is a "
            f"'{config.model_type}' model: remove part, or name one of those"
        )
    told = copy.deepcopy(config.to_dict().get("vision_config", {}).get("model_args"))
    model = load_model(
        SIGHTS[config.model_type].kind,
        name,
        precision=precision,
        device=device,
        quantization_config=quantization_config,
        attn_implementation=attn_implementation,
    )
    if told is not None:
        model.config.vision_config.model_args = told  # timm uses up the arguments that it is given
    return model


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The same model without weights and adapters, to learn shapes from."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))
