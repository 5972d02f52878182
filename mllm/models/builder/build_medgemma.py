"""Builder of type `medgemma`; its record is `mllm/models/medgemma/family.py`."""

from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.build_family import build_model
from mllm.protocols import Bundle
from mllm.registry import MODELS


@MODELS.register_module("medgemma")
def build_medgemma(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Gemma 3 with images: MedGemma 4B and 27B, Gemma 3."""
    return build_model(args, hardware)
