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
"""Architectures whose `token_type_ids` are 0 in the prompt, with bidirectional attention, and 1 in the answer."""


OWN_PLACEMENT = (
    "has no conversations: its processor writes the tokens of one image before the text, not in place of <image>"
)
WITHOUT_CONVERSATIONS = {
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo", "kosmos-2.5"), OWN_PLACEMENT),
    "shieldgemma2": "has no conversations: its processor writes its own question about each policy of safety",
    "evolla": "reads proteins, and no images",
    "pi0": "writes the movements of a robot, and no text",
    "diffusion_gemma": "writes blocks of tokens by diffusion, and not one token after another",
}
"""Architectures of AutoModelForImageTextToText that no conversation about images can train, each with its reason."""


TYPES_OF_JOINT_POSITIONS = frozenset({"hunyuan_vl"})
"""Architectures whose code numbers the images of all samples of a batch together, so that a sample has other positions
in a batch than alone (transformers 5.23: `image_index` in `HunYuanVLModel.get_rope_index`)."""


TYPES_OF_TOKEN_KINDS = frozenset({"cosmos3_edge"})
"""Architectures that read `mm_token_type_ids`, which their processor returns only if it is told to."""


TYPES_OF_LAST_STATE = frozenset({"internvl"})
"""Architectures whose projector reads the output of the vision tower, although their config names a layer."""


def is_chosen(model_type: str | None) -> bool:
    """Return True if this type reads an architecture: it reads images, or transformers does not list it."""
    from transformers.models.auto import modeling_auto

    text = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or model_type not in text


def choose_tiny(checkpoint: str) -> str:
    """Return the tiny checkpoint that replaces a checkpoint: of the same architecture if there is one, else LLaVA."""
    names = {
        "gemma-4": "gemma4",
        "internvl": "internvl",
        "paligemma": "paligemma2",
        "qwen3-vl": "qwen3_vl",
        "qwen2": "qwen2_vl",
        "smolvlm": "smolvlm",
    }
    return next((tiny for part, tiny in names.items() if part in checkpoint.lower()), "llava")


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
    stand_in=choose_tiny,
    titles={"paligemma": "PaliGemma"},
    tiny={
        "llava": LazyFunction("mllm.models.auto.tiny:llava"),
        "qwen2_vl": LazyFunction("mllm.models.auto.tiny_qwen:qwen2_vl"),
        "qwen3_vl": LazyFunction("mllm.models.auto.tiny_qwen:qwen3_vl"),
        "gemma4": LazyFunction("mllm.models.auto.tiny_gemma4:gemma4"),
        "paligemma2": LazyFunction("mllm.models.auto.tiny_paligemma:paligemma2"),
        "internvl": LazyFunction("mllm.models.auto.tiny_internvl:internvl"),
        "smolvlm": LazyFunction("mllm.models.auto.tiny_smolvlm:smolvlm"),
    },
)
