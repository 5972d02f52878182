"""Record of type `gemma3n-student`: Gemma 3n E2B and E4B with images, or only its MobileNet-v5 (`part='vision'`)."""

from __future__ import annotations

from collections.abc import Mapping

from mllm.config.schema import ModelArgs
from mllm.family import Family, LazyFunction
from mllm.models.gemma3n.rules import refuse_half_precision, refuse_privacy, refuse_quantized_vision
from mllm.models.vision_record import vision_record

TOWERS = {
    "language": "model.language_model",
    "vision": "model.vision_tower",
    "projector": "model.embed_vision",
    "audio": "model.audio_tower",
}
LANGUAGE_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
# The vision tower has no Linear layer, and the audio tower is not used.
# AltUp clamps the weights of its Linear layers in training, which would destroy packed 4-bit and 8-bit numbers.
ALTUP = ["correction_coefs", "prediction_coefs", "modality_router"]


def keep_unquantized(bits: int, towers: Mapping[str, str]) -> list[str]:
    """Return all modules outside of the language model, and the parts of its layers that no quantized weight allows."""
    return ["lm_head", towers["vision"], towers["projector"], towers["audio"], "model.embed_audio", *ALTUP]


GEMMA3N_STUDENT = Family(
    type="gemma3n-student",
    options=ModelArgs,
    load=LazyFunction("mllm.models.gemma3n.load:load"),
    towers=lambda model: TOWERS,
    lora_targets=LazyFunction("mllm.models.gemma3n.load:find_targets"),
    keep_unquantized=keep_unquantized,
    model_types=frozenset({"gemma3n"}),
    unsupported_keys=frozenset({"image_size", "image_token_len"}),
    rules=(refuse_privacy,),
    titles={"gemma3n": "Gemma 3n"},
    tiny={"gemma3n-student": LazyFunction("mllm.models.gemma3n.tiny:gemma3n_student")},
    vision=vision_record(
        "gemma3n-student",
        ModelArgs,
        load=LazyFunction("mllm.models.gemma3n.vision:load"),
        towers={name: TOWERS[name] for name in ("vision", "projector")},
        layers="model.vision_tower.timm_model.blocks",
        model_types=frozenset({"gemma3n"}),
        rules=(refuse_quantized_vision, refuse_half_precision, refuse_privacy),
        cannot_quantize="the vision tower has convolutions and no Linear layer",
    ),
)
