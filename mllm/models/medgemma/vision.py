"""Gemma 3 (MedGemma) without its language model."""

from __future__ import annotations

from typing import Any

from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.backbone.vision_part import VisionPart
from mllm.models.builder.build_vision_part import load_part
from mllm.models.vision_record import FULL_PRECISION


class Gemma3Vision(VisionPart, Gemma3ForConditionalGeneration):
    """SigLIP tower and projector of Gemma 3."""

    _tied_weights_keys = {}
    _keys_to_ignore_on_load_unexpected = [r"language_model\.", r"^lm_head\."]

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__(config)
        del self.lm_head, self.model.language_model


def load(args: ModelArgs, hardware: Hardware, processor: Any) -> PreTrainedModel:
    """Load the vision tower and the projector."""
    return load_part(Gemma3Vision, args, hardware, keep=FULL_PRECISION)
