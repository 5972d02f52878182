"""Record of type `medgemma`: Gemma 3 with images (MedGemma 4B and 27B, Gemma 3 4B to 27B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.config.schema import ModelArgs
from mllm.family import Family, LazyFunction, Terms
from mllm.models.medgemma.rules import refuse_image_size, refuse_image_tokens, refuse_other_models, refuse_short_length
from mllm.models.vision_record import vision_record

TOWERS = {
    "language": "model.language_model",
    "vision": "model.vision_tower",
    "projector": "model.multi_modal_projector",
}
LORA_TARGETS = {
    "language": r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)",
    # SigLIP names its output projection out_proj and its MLP fc1 and fc2.
    "vision": r".*vision_tower\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
}
IMAGE_TOKENS, IMAGE_SIZE = 256, 896
"""Tokens of one image and its side in pixels in the released checkpoints (their config.json)."""
TERMS = {
    "medgemma": Terms(
        "health-ai-developer-foundations",
        "https://developers.google.com/health-ai-developer-foundations/terms",
        "MedGemma is provided under the Health AI Developer Foundations terms of use. They also apply to models "
        "derived from it.",
    ),
    "gemma": Terms(
        "gemma",
        "https://ai.google.dev/gemma/terms",
        "Gemma is provided under the Gemma terms of use. They also apply to models derived from it. For MedGemma the "
        "Health AI Developer Foundations terms apply.",
        license="gemma",
    ),
}


def keep_unquantized(bits: int, towers: Mapping[str, str]) -> list[str]:
    """Return the modules that stay in full precision.

    4 bits are for cards where the vision tower in half precision (0.8 GB) does not fit; Google's QLoRA of MedGemma
    quantizes it as well. With 8 bits the tower stays unrounded. The output projection is tied to the embedding, and
    the projector has no Linear layer.
    """
    return ["lm_head", towers["projector"], *([] if bits == 4 else [towers["vision"]])]


def image_note(settings: Mapping[str, Any], kind: str) -> str:
    """Return the paragraph of a model card about images that are not encoded as in the released Gemma 3."""
    tokens, size = settings.get("image_token_len"), settings.get("image_size")
    if tokens in (None, IMAGE_TOKENS) and size in (None, IMAGE_SIZE):
        return ""
    parts = [f"{tokens} tokens per image"] if tokens else []
    parts += [f"images of {size} pixels"] if size else []
    note = f"## Images\n\nTrained with {' and '.join(parts)}."
    if tokens and round(tokens**0.5) ** 2 != tokens:
        note += (
            f" {tokens} tokens need a rectangular pool, which stock transformers does not have: it fails at the first "
            "image. Load the folder with mllm."
        )
    elif kind == "adapter":
        note += " A base loaded by stock transformers encodes images differently. Load the folder with mllm."
    return note


MEDGEMMA = Family(
    type="medgemma",
    options=ModelArgs,
    processor=LazyFunction("mllm.models.medgemma.load:load_processor"),
    encoder=LazyFunction("mllm.models.medgemma.load:build_encoder"),
    load=LazyFunction("mllm.models.medgemma.load:load"),
    towers=lambda model: TOWERS,
    lora_targets=lambda model: LORA_TARGETS,
    keep_unquantized=keep_unquantized,
    model_types=frozenset({"gemma3"}),
    chosen_for=lambda model_type: model_type in (None, "gemma3"),
    rules=(refuse_other_models, refuse_image_tokens, refuse_image_size, refuse_short_length),
    memory_keys=("image_token_len", "image_size"),
    titles={"gemma3": "Gemma 3", "gemma3_text": "Gemma 3"},
    names={"medgemma": "Gemma 3", "gemma-3": "Gemma 3"},
    terms=TERMS,
    download={"medgemma": "bash scripts/download_medgemma.sh"},
    image_note=image_note,
    tiny={"medgemma": LazyFunction("mllm.models.medgemma.tiny:medgemma")},
    vision=vision_record(
        "medgemma",
        ModelArgs,
        load=LazyFunction("mllm.models.medgemma.vision:load"),
        towers={name: TOWERS[name] for name in ("vision", "projector")},
        layers="model.vision_tower.encoder.layers",
        model_types=frozenset({"gemma3"}),
        rules=(refuse_other_models,),
    ),
)
