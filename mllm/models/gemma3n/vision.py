"""Gemma 3n without its language model and its audio tower."""

from __future__ import annotations

import copy
from typing import Any

from transformers import Gemma3nConfig, Gemma3nForConditionalGeneration, PreTrainedModel

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.backbone.vision_part import VisionPart
from mllm.models.builder.build_vision_part import load_part
from mllm.models.vision_record import FULL_PRECISION


class Gemma3nVision(VisionPart, Gemma3nForConditionalGeneration):
    """MobileNet-v5 and the projector of Gemma 3n."""

    _tied_weights_keys = {}
    _keys_to_ignore_on_load_unexpected = [r"language_model\.", r"audio", r"^lm_head\."]

    def __init__(self, config: Gemma3nConfig) -> None:
        tower: Any = config.vision_config
        arguments = copy.deepcopy(tower.model_args)
        super().__init__(config)
        tower.model_args = arguments  # timm removes entries from the dict that it receives
        del self.lm_head, self.model.language_model, self.model.audio_tower, self.model.embed_audio


def load(args: ModelArgs, hardware: Hardware, processor: Any) -> PreTrainedModel:
    """Load the vision tower and the projector."""
    return load_part(Gemma3nVision, args, hardware, keep=FULL_PRECISION)
