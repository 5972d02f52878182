"""Merging of adapters into full-precision weights."""

from __future__ import annotations

import bitsandbytes as bnb
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.backbone.half_safe import HalfSafeLinear


def merged_weights(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    """Merge the adapters of `model` into the weights of its base, in place, and return the base.

    Tied weights stay tied. Raise `ConfigError` if the base is stored in 4 or 8 bits, or in fp16 with fp32 activations.
    """
    if not isinstance(model, PeftModel):
        return model
    base = base_of(model)
    if any(isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt | HalfSafeLinear) for module in base.modules()):
        raise ConfigError(
            "an adapter can only be merged into full-precision weights: load the model in fp32 or bf16, without "
            "load_in_4bit and load_in_8bit, as pipeline/merge.py does"
        )
    tied = _is_tied(base)
    merged = model.merge_and_unload(safe_merge=True)
    assert isinstance(merged, PreTrainedModel) and _is_tied(merged) == tied
    return merged


def base_of(model: PeftModel) -> PreTrainedModel:
    """Return the model of transformers inside a `PeftModel`."""
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


def _is_tied(model: PreTrainedModel) -> bool:
    """Return True if the output projection shares its weight with the input embedding."""
    output = model.get_output_embeddings()
    return isinstance(output, nn.Linear) and output.weight is model.get_input_embeddings().weight
