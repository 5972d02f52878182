"""Towers and LoRA targets of models of text."""

from __future__ import annotations

from transformers import PreTrainedModel

from mllm.models.adapters.targets import derived_targets, matching, pattern_of

ATTENTION_AND_MLP = r".*\.(self_attn|mlp)\.[^.]+"
"""Layers that a LoRA on the language model adapts; Gemma 3n has further projections beside them."""


def decoder_towers(model: PreTrainedModel) -> dict[str, str]:
    """Return the prefix of the language model, which is empty where the model has no other part."""
    return {"language": next(name for name, module in model.named_modules() if module is model.get_decoder())}


def decoder_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return the pattern of the Linear layers of attention and MLP, or of all where a family names them otherwise."""
    targets = derived_targets(model, decoder_towers(model))
    common = matching(ATTENTION_AND_MLP, model) & matching(targets["language"], model)
    return {"language": pattern_of(common, model)} if common else targets


def encoder_decoder_towers(model: PreTrainedModel) -> dict[str, str]:
    """Return the prefixes of encoder and decoder."""
    names = {module: name for name, module in model.named_modules()}
    return {"encoder": names[model.get_encoder()], "language": names[model.get_decoder()]}


def encoder_decoder_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return the pattern of the Linear layers of both halves: the target 'language' means both."""
    halves = [derived_targets(model, {"language": half})["language"] for half in encoder_decoder_towers(model).values()]
    return {"language": "|".join(f"(?:{half})" for half in halves)}
