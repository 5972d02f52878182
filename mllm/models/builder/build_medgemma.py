"""Type `medgemma`: Gemma 3 that reads images (MedGemma 4B and 27B, Gemma 3 4B to 27B)."""

from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.adapters.targets import GEMMA3_TARGETS
from mllm.models.backbone.loading import find_checkpoint, load_config, load_processor
from mllm.models.builder.build_options import load_options
from mllm.models.builder.build_shared import assemble
from mllm.models.builder.build_vision import build_vision
from mllm.models.medgemma.medgemma_perception import load_gemma3, shape_images
from mllm.registry import MODELS
from mllm.structures import Bundle

TOWERS = {
    "language": "model.language_model",
    "vision": "model.vision_tower",
    "projector": "model.multi_modal_projector",
}


@MODELS.register_module("medgemma")
def build_medgemma(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Gemma 3 that reads images: MedGemma 4B and 27B, Gemma 3."""
    if args.part == "vision":
        return build_vision(args, hardware)
    name = find_checkpoint(args.model_name_or_path)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    if config.model_type != "gemma3":
        raise ConfigError(
            f"type='medgemma' loads Gemma 3 that reads images, but model_name_or_path '{name}' is a "
            f"'{config.model_type}' model: use type='image-text' for other models that read images"
        )
    processor = load_processor(name, trust_remote_code=args.trust_remote_code)
    # 4-bit is for cards where the tower's 0.8 GB in half precision would not fit, and Google's own QLoRA of MedGemma
    # quantizes it; 8-bit is for larger ones, where the image may be seen unrounded. The output layer is tied to the
    # embedding, and the projector has no Linear.
    keep = ["lm_head", TOWERS["projector"]] if args.load_in_4bit else ["lm_head", TOWERS["projector"], TOWERS["vision"]]
    model = load_gemma3(
        name,
        **load_options(config, args, hardware, keep=keep),
    )
    shape_images(model, processor, args.image_size, args.image_token_len)
    return assemble(model, processor, towers=TOWERS, targets=GEMMA3_TARGETS, args=args, hardware=hardware)
