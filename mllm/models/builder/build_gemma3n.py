"""Builder of type `gemma3n-student`; its record is `mllm/models/gemma3n/family.py`."""

from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.build_family import build_model
from mllm.protocols import Bundle
from mllm.registry import MODELS


@MODELS.register_module("gemma3n-student")
def build_gemma3n_student(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Gemma 3n with images; with part='vision' only its MobileNet-v5 and projector."""
    return build_model(args, hardware)
