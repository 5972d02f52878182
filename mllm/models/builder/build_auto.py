"""Builder of type `image-text`; its record is `mllm/models/auto/family.py`."""

from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.build_family import build_model
from mllm.protocols import Bundle
from mllm.registry import MODELS


@MODELS.register_module("image-text")
def build_image_text(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Any model of transformers' AutoModelForImageTextToText: LLaVA, Qwen-VL, PaliGemma, Idefics..."""
    return build_model(args, hardware)
