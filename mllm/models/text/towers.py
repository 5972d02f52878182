"""Towers and LoRA targets of models of text."""

from __future__ import annotations

from transformers import PreTrainedModel

from mllm.models.adapters.targets import derived_targets, matching, pattern_of

ATTENTION_AND_MLP = r".*\.(self_attn|mlp)\.[^.]+"
"""Layers that a LoRA on the language model adapts; Gemma 3n has further projections, which it does not adapt."""


def decoder_towers(model: PreTrainedModel) -> dict[str, str]:
    """Return the prefix of the language model, which is empty if the model has no other part."""
    return {"language": next(name for name, module in model.named_modules() if module is model.get_decoder())}


def decoder_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return the pattern of the Linear layers of attention and MLP, or of all if they have other names."""
    targets = derived_targets(model, decoder_towers(model))
    common = matching(ATTENTION_AND_MLP, model) & matching(targets["language"], model)
    return {"language": pattern_of(common, model)} if common else targets


def encoder_decoder_towers(model: PreTrainedModel) -> dict[str, str]:
    """Return the prefixes of encoder and decoder."""
    names = {module: name for name, module in model.named_modules()}
    return {"encoder": names[model.get_encoder()], "language": names[model.get_decoder()]}


def encoder_decoder_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return the pattern of the Linear layers of encoder and decoder: the target 'language' means both."""
    prefixes = encoder_decoder_towers(model).values()
    patterns = [derived_targets(model, {"language": prefix})["language"] for prefix in prefixes]
    return {"language": "|".join(f"(?:{pattern})" for pattern in patterns)}
