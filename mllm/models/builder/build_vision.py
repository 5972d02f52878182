"""Builder of type `medsiglip`; its record is `mllm/models/siglip/family.py`."""

from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.build_family import build_model
from mllm.protocols import Bundle
from mllm.registry import MODELS


@MODELS.register_module("medsiglip")
def build_vision(args: ModelArgs, hardware: Hardware) -> Bundle:
    """A SigLIP vision tower without a language model, such as MedSigLIP."""
    return build_model(args, hardware)
