"""Type `image-text`: every architecture of transformers' AutoModelForImageTextToText, by config only."""

from __future__ import annotations

import re

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.adapters.targets import derived_targets, matching, pattern_of
from mllm.models.backbone.loading import explained, find_checkpoint, load_config, load_model, load_processor
from mllm.models.builder.build_options import load_options
from mllm.models.builder.build_shared import assemble
from mllm.registry import MODELS
from mllm.structures import Bundle

PROJECTORS = (
    "multi_modal_projector",
    "projector",
    "connector",
    "merger",
    "aligner",
    "embed_vision",
    "modality_projection",
)
"""What transformers calls the module between vision and language; some have none of its own."""


@MODELS.register_module("image-text")
def build_image_text(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Any model that transformers' AutoModelForImageTextToText knows: LLaVA, Qwen-VL, PaliGemma, Idefics..."""
    for key in ("image_size", "image_token_len"):
        if vars(args)[key] is not None:
            raise ConfigError(f"model_args.{key} is only possible with type='medgemma'; remove it")
    name = find_checkpoint(args.model_name_or_path)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    towers = find_towers(_skeleton(name, config, args.trust_remote_code))
    processor = load_processor(name, trust_remote_code=args.trust_remote_code)
    kept = [prefix for tower, prefix in towers.items() if tower != "language"]
    model = load_model(
        AutoModelForImageTextToText,
        name,
        # Only the language model is quantized: it is most of the weights, and other towers may not fit the blocks.
        **load_options(config, args, hardware, keep=["lm_head", *kept]),
    )
    targets = lora_targets(model, towers)
    return assemble(model, processor, towers=towers, targets=targets, args=args, hardware=hardware)


def _skeleton(name: str, config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model without weights; raises `ConfigError` where it is none that reads images and writes text."""
    own_code = trust_remote_code and "AutoModelForImageTextToText" in config.to_dict().get("auto_map", {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not own_code:
        raise ConfigError(
            f"type='image-text' loads what AutoModelForImageTextToText knows (llava, qwen2_vl, gemma3 ...), but "
            f"model_name_or_path '{name}' is a '{config.model_type}' model"
        )
    with torch.device("meta"), explained(name):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)


def find_towers(model: PreTrainedModel) -> dict[str, str]:
    """Where a model's parts are: 'projector', 'vision' and 'language' -> the prefix of their modules.

    The projector comes first, since it may lie inside the vision tower. Raises `ConfigError` where one is not found.
    """
    names = {module: name for name, module in model.named_modules()}
    base = names[model.base_model]
    towers = {"vision": names[model.get_encoder(modality="image")], "language": names[model.get_decoder()]}
    for tower, prefix in towers.items():
        if prefix in ("", base):
            parts = ", ".join(name for name, _ in model.base_model.named_children())
            raise ConfigError(
                f"type='image-text' cannot tell which part of {type(model).__name__} is its {tower} model "
                f"(parts: {parts}): this architecture needs a builder of its own"
            )
    for name in names.values():
        if name.rpartition(".")[2] in PROJECTORS:
            return {"projector": name, **towers}
    return towers


def lora_targets(model: PreTrainedModel, towers: dict[str, str]) -> dict[str, str]:
    """Patterns of the Linear layers of 'language' and 'vision'.

    Vision layers behind the one that is read (LLaVA reads the last but one) are left out: no gradient reaches them.
    """
    targets = derived_targets(model, towers)
    if "vision" in targets:
        read = {name for name in matching(targets["vision"], model) if _is_read(model.config, name)}
        targets["vision"] = pattern_of(read, model)
    return targets


def _is_read(config: PretrainedConfig, name: str) -> bool:
    """Whether a module of the vision tower lies before the last hidden state that the projector reads."""
    read = config.to_dict().get("vision_feature_layer")
    layer = re.search(r"\.layers\.(\d+)\.", name)
    if read is None or layer is None:
        return True
    depth = config.to_dict()["vision_config"]["num_hidden_layers"]
    # Hidden state 0 is the embedding, so state k is the output of layer k - 1; negative ones count from the end.
    states = [state if state >= 0 else depth + 1 + state for state in (read if isinstance(read, list) else [read])]
    return int(layer[1]) < max(states)
