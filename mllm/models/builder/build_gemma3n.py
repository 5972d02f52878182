"""Type `gemma3n-student`: Gemma 3n E2B and E4B with images, whole or its MobileNet-v5 alone."""

from __future__ import annotations

import copy

from transformers import Gemma3nForConditionalGeneration

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.backbone.loading import find_checkpoint, load_config, load_model, load_processor
from mllm.models.builder.build_options import load_options
from mllm.models.builder.build_shared import assemble
from mllm.models.builder.build_vision import build_vision, vision_targets
from mllm.registry import MODELS
from mllm.structures import Bundle

TOWERS = {
    "language": "model.language_model",
    "vision": "model.vision_tower",
    "projector": "model.embed_vision",
    "audio": "model.audio_tower",
}
LANGUAGE_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"


@MODELS.register_module("gemma3n-student")
def build_gemma3n_student(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Gemma 3n that reads images; with part='vision' its MobileNet-v5 and projector alone."""
    if args.part == "vision":
        return build_vision(args, hardware)
    for key in ("image_size", "image_token_len"):
        if vars(args)[key] is not None:
            raise ConfigError(f"model_args.{key} is not possible for Gemma 3n: its images have 256 tokens; remove it")
    name = find_checkpoint(args.model_name_or_path)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    told = copy.deepcopy(config.vision_config.model_args)
    model = load_model(
        Gemma3nForConditionalGeneration,
        name,
        # The vision tower has no Linear layer but for its projector, and sounds are not read.
        **load_options(
            config,
            args,
            hardware,
            keep=["lm_head", TOWERS["vision"], TOWERS["projector"], TOWERS["audio"], "model.embed_audio"],
        ),
    )
    model.config.vision_config.model_args = told  # timm uses up the arguments that it is given
    targets = {"language": LANGUAGE_TARGETS, "vision": vision_targets(model, TOWERS["vision"])}
    processor = load_processor(name, trust_remote_code=args.trust_remote_code)
    return assemble(model, processor, towers=TOWERS, targets=targets, args=args, hardware=hardware)
