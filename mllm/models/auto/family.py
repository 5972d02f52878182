"""Record of type `image-text`: every architecture of transformers' AutoModelForImageTextToText, by config only."""

from __future__ import annotations

from collections.abc import Mapping

from mllm.config.schema import ModelArgs
from mllm.family import Family, LazyFunction


def keep_unquantized(bits: int, towers: Mapping[str, str]) -> list[str]:
    """Return all modules outside of the language model: it has most of the weights, and other towers may not fit the
    blocks of the quantization."""
    return ["lm_head", *(prefix for tower, prefix in towers.items() if tower != "language")]


TYPES_OF_SUFFIX = frozenset({"paligemma"})
"""Architectures whose `token_type_ids` are 1 in the answer, and which read all tokens with 0 at once."""


def is_chosen(model_type: str | None) -> bool:
    """Return whether an architecture is read by this type: it reads images, or transformers does not list it."""
    from transformers.models.auto import modeling_auto

    text = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or model_type not in text


IMAGE_TEXT = Family(
    type="image-text",
    options=ModelArgs,
    processor=LazyFunction("mllm.models.auto.load:load_processor"),
    load=LazyFunction("mllm.models.auto.load:load"),
    towers=LazyFunction("mllm.models.auto.towers:find_towers"),
    lora_targets=LazyFunction("mllm.models.auto.towers:find_targets"),
    keep_unquantized=keep_unquantized,
    chosen_for=is_chosen,
    unsupported_keys=frozenset({"image_size", "image_token_len", "part", "train_vision"}),
    titles={"paligemma": "PaliGemma"},
    tiny={
        "llava": LazyFunction("mllm.models.auto.tiny:llava"),
        "qwen2_vl": LazyFunction("mllm.models.auto.tiny:qwen2_vl"),
    },
)
