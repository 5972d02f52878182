"""From `model_args` to a loaded model with its adapter and encoder."""

from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder import (
    build_auto,
    build_gemma3n,
    build_medgemma,
    build_perceptionGPT,
    build_seq2seq,
    build_shikra,
    build_text,
    build_vision,
)
from mllm.registry import MODELS
from mllm.structures import Bundle

BUILDERS = (
    *(build_auto, build_gemma3n, build_medgemma, build_perceptionGPT),
    *(build_seq2seq, build_shikra, build_text, build_vision),
)
"""The modules whose import fills the registry MODELS."""


def load_pretrained(args: ModelArgs, hardware: Hardware) -> Bundle:
    """The model, with the adapter that trains, and the encoder that `args` ask for.

    The base is frozen and in evaluation mode; quantized weights are on `hardware.device`, others in host memory.
    Raises `ConfigError` for what `args` ask for in vain.
    """
    bundle = MODELS.find(args.type)(args, hardware)
    assert isinstance(bundle, Bundle)
    return bundle
