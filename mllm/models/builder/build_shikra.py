"""Builder of type `shikra`; its record is in `mllm/models/shikra/family.py`."""

from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.build_family import build_model
from mllm.protocols import Bundle
from mllm.registry import MODELS


@MODELS.register_module("shikra")
def build_shikra(args: ModelArgs, hardware: Hardware) -> Bundle:
    """A LLaVA, or a LLaMA that is combined with `vision_tower` to a LLaVA; its projector is trained in full."""
    return build_model(args, hardware)
