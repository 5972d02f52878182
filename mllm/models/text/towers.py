"""Towers and LoRA targets of models of text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.adapters.targets import derived_targets, matching, pattern_of
from mllm.models.auto.towers import find_vision_parts, refuse_missing_output, targets_in

CROSS_ATTENTION = re.compile(r"encoder_attn|cross_?att(n|ention)|encoder_decoder_attention|EncDecAttention")
"""Names in transformers of the attention of a decoder to an encoder."""


def decoder_towers(model: PreTrainedModel) -> dict[str, str]:
    """Return the prefix of the language model. Raise `ConfigError` where it is not found.

    It is the decoder that transformers names, else the innermost module with the input embedding that has layers.
    """
    refuse_missing_output(model)
    names = {module: name for name, module in model.named_modules()}
    embedding = names[model.get_input_embeddings()].split(".")
    around = [".".join(embedding[:end]) for end in range(len(embedding) - 1, 0, -1)]
    for prefix in (names[model.get_decoder()], names[model.base_model], *around):
        if prefix and any(isinstance(module, nn.ModuleList) for module in model.get_submodule(prefix).modules()):
            return {"language": prefix}
    parts = ", ".join(name for name, _ in model.named_children())
    raise ConfigError(f"the language model of {type(model).__name__} cannot be found among its parts ({parts})")


def decoder_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return the pattern of the Linear layers of attention and MLP.

    Attention to an encoder is left out: a decoder alone (BART, Mllama) has no encoder to read.
    """
    targets = derived_targets(model, decoder_towers(model))
    modules = dict(model.named_modules())
    return {
        name: pattern_of([layer for layer in matching(pattern, model) if not _reads_encoder(layer, modules)], model)
        for name, pattern in targets.items()
    }


def _reads_encoder(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Return True if a module is in attention to an encoder, or in a layer with no other attention (Mllama)."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        children = {child for child, _ in modules[".".join(parts[:end])].named_children()}
        to_encoder = {child for child in children if CROSS_ATTENTION.fullmatch(child)}
        if parts[end] in to_encoder:
            return True
        if to_encoder:
            return not any("att" in child and "norm" not in child for child in children - to_encoder)
    return False


def encoder_decoder_towers(model: PreTrainedModel) -> dict[str, str]:
    """Return the prefixes of encoder and decoder, after those of the parts that read images."""
    refuse_missing_output(model)
    names = {module: name for name, module in model.named_modules()}
    return {**find_vision_parts(model), "encoder": names[model.get_encoder()], "language": names[model.get_decoder()]}


def encoder_decoder_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return the patterns of the Linear layers: 'language' are both halves, 'vision' is a tower in the encoder."""
    towers = encoder_decoder_towers(model)
    beside = {tower: prefix for tower, prefix in towers.items() if tower in ("projector", "vision")}
    encoder, decoder = (targets_in(model, {**beside, "language": towers[half]}) for half in ("encoder", "language"))
    return {**encoder, "language": f"(?:{encoder['language']})|(?:{decoder['language']})"}
