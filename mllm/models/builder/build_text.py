"""Builder of type `causal-lm`; its record is in `mllm/models/text/family.py`."""

from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.build_family import build_model
from mllm.protocols import Bundle
from mllm.registry import MODELS


@MODELS.register_module("causal-lm")
def build_causal_lm(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Any model of transformers' AutoModelForCausalLM: Gemma, Gemma 3n, VaultGemma, Llama, Qwen..."""
    return build_model(args, hardware)
