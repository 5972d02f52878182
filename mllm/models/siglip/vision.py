"""Vision tower of a SigLIP."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, SiglipVisionConfig, SiglipVisionModel

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.backbone.vision_part import VisionPart
from mllm.models.builder.build_vision_part import load_part
from mllm.models.vision_record import FULL_PRECISION


class SiglipVision(VisionPart, SiglipVisionModel):
    """Vision tower of a SigLIP, such as MedSigLIP; its features are its last hidden states."""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_(scale|bias)$", r"^(vision_model\.)?head\."]

    def __init__(self, config: SiglipVisionConfig) -> None:
        config.vision_use_head = False  # the head pools all patches of an image into one feature
        super().__init__(config)

    def get_image_features(self, pixel_values: Tensor) -> Any:
        """Return the output with features [V, N, D] as `pooler_output`, as models with a projector do."""
        output = self(pixel_values=pixel_values)
        output.pooler_output = output.last_hidden_state
        return output


def load(args: ModelArgs, hardware: Hardware, processor: Any) -> PreTrainedModel:
    """Load the vision tower."""
    return load_part(SiglipVision, args, hardware, keep=FULL_PRECISION)
