"""Builder of type `perceptionGPT`; its record is in `mllm/models/shikra/family.py`."""

# ruff: noqa: N999 - the type has this name in its configs
from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.build_family import build_model
from mllm.protocols import Bundle
from mllm.registry import MODELS


@MODELS.register_module("perceptionGPT")
def build_perception_gpt(args: ModelArgs, hardware: Hardware) -> Bundle:
    """A LLaVA with heads that decode `<loc>` to boxes and masks (arXiv:2311.06612)."""
    return build_model(args, hardware)
