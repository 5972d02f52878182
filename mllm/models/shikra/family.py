"""Records of types `shikra` and `perceptionGPT`: a LLaVA whose projector is trained together with the LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mllm.family import Family, LazyFunction
from mllm.models.auto.family import keep_unquantized
from mllm.models.shikra.options import ShikraArgs
from mllm.models.shikra.rules import refuse_freezing_conflicts, refuse_gemma, refuse_wrong_llava

TOWERS = {
    "language": "model.language_model",
    "vision": "model.vision_tower",
    "projector": "model.multi_modal_projector",
}
PERCEPTION_HEADS = {"box": {"type": "BoxHead"}, "mask": {"type": "MaskHead"}}


def trains_lora(args: Any) -> bool:
    """Return True if `args` (`ShikraArgs`) train a LoRA in the language model."""
    return not (args.freeze_backbone or args.tune_mm_mlp_adapter)


SHIKRA = Family(
    type="shikra",
    options=ShikraArgs,
    processor=LazyFunction("mllm.models.shikra.load:load_processor"),
    encoder=LazyFunction("mllm.models.shikra.load:build_encoder"),
    load=LazyFunction("mllm.models.shikra.load:load"),
    skeleton=None,
    towers=lambda model: TOWERS,
    lora_targets=LazyFunction("mllm.models.shikra.load:find_targets"),
    keep_unquantized=keep_unquantized,
    model_types=frozenset({"llava", "llama"}),
    unsupported_keys=frozenset({"part", "train_vision"}),
    defaults={"pad_to_square": True},
    complete={"vision_tower": None, "pretrain_mm_mlp_adapter": None},
    rules=(refuse_gemma, refuse_wrong_llava, refuse_freezing_conflicts),
    trains_lora=trains_lora,
    trains_projector=lambda args: not args.freeze_mm_mlp_adapter,
    titles={"llama": "LLaMA", "llava": "LLaVA"},
    tiny={
        "shikra": LazyFunction("mllm.models.shikra.tiny:shikra"),
        "llama": LazyFunction("mllm.models.shikra.tiny:llama"),
        "clip": LazyFunction("mllm.models.shikra.tiny:clip"),
    },
)
PERCEPTION_GPT = replace(
    SHIKRA,
    type="perceptionGPT",
    defaults={"pad_to_square": True, "fuse_vision_layers": True, "heads": PERCEPTION_HEADS},
)
"""One token for every object, decoded by heads for boxes and masks (arXiv:2311.06612)."""
