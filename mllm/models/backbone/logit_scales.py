"""Factors by which some architectures multiply their logits, and bounds of the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

FACTORS: Mapping[str, str] = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe", "cohere_compass", "cohere_compass_text"), "logit_scale"),
    **dict.fromkeys(("hyperclovax", "hyperclovax_vision_v2"), "logits_scaling"),
    "falcon_h1": "lm_head_multiplier",
    **dict.fromkeys(("muse_glimmer", "muse_spark"), "output_multiplier"),
}
"""Architecture -> key of the config of its language model with the factor of the logits.

The architecture is that of the whole model: Aya Vision has the language model of Cohere 2, and does not scale.
"""
DIVISORS: Mapping[str, str] = {
    **dict.fromkeys(("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid"), "logits_scaling"),
    **dict.fromkeys(("granitemoeshared", "granite4_vision", "granite_docling", "minicpm3"), "logits_scaling"),
    **dict.fromkeys(("inkling_text", "inkling_mm_model"), "logits_mup_width_multiplier"),
}
"""Architecture -> key with the divisor of the logits."""

CAPS: Mapping[str, str] = {"recurrent_gemma": "logits_soft_cap", "xlstm": "output_logit_soft_cap"}
"""Architecture -> key with the bound of the logits, where it is not `final_logit_softcapping`."""


def logit_cap(config: PretrainedConfig) -> float | None:
    """Return the bound C of the logits x of a model, which are C tanh(x / C), or None."""
    text: dict[str, Any] = config.get_text_config(decoder=True).to_dict()
    return text.get(CAPS.get(config.model_type, "final_logit_softcapping"))


def logit_scale(config: PretrainedConfig) -> float:
    """Return the factor of the logits of a model."""
    text = config.get_text_config(decoder=True)
    if config.model_type in FACTORS:
        return float(getattr(text, FACTORS[config.model_type]))
    return 1 / float(getattr(text, DIVISORS[config.model_type])) if config.model_type in DIVISORS else 1.0
