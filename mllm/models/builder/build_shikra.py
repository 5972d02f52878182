"""Type `shikra`: a LLaVA whose projector trains beside the LoRA, read whole or composed of a LLaMA and a CLIP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
)

from mllm.config.defaults import with_defaults
from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.backbone.loading import find_checkpoint, load_config, load_model, load_processor, quantization
from mllm.models.builder.build_auto import lora_targets
from mllm.models.builder.build_options import load_options
from mllm.models.builder.build_shared import assemble
from mllm.models.shikra.projector import ACTIVATIONS, is_single, read_projector, to_llava
from mllm.models.shikra.shikra import clip_vision_config, compose, load_llava_processor, set_projector
from mllm.registry import MODELS
from mllm.structures import Bundle

TOWERS = {
    "language": "model.language_model",
    "vision": "model.vision_tower",
    "projector": "model.multi_modal_projector",
}


@MODELS.register_module("shikra")
def build_shikra(args: ModelArgs, hardware: Hardware) -> Bundle:
    """A LLaVA or, with `vision_tower`, a LLaMA that is made one; its projector trains in full."""
    args = with_defaults(args)
    processor, _ = llava_processor(args)
    model = _whole(args, hardware) if args.vision_tower is None else _composed(args, hardware, processor)
    if args.freeze_backbone or args.tune_mm_mlp_adapter:
        args = replace(args, lora_r=None)
    if not args.freeze_mm_mlp_adapter:
        model.model.multi_modal_projector.float()  # what is stored in fp16 would be taken for frozen
    return assemble(
        model,
        processor,
        towers=TOWERS,
        targets=lora_targets(model, TOWERS),
        args=args,
        hardware=hardware,
        trains_projector=not args.freeze_mm_mlp_adapter,
    )


def llava_processor(args: ModelArgs) -> tuple[LlavaProcessor, PretrainedConfig]:
    """The processor of the model that `args` ask for, and the config of its vision tower.

    Raises `ConfigError` for a checkpoint of another kind, or where `args` ask for images that the tower does not see.
    """
    name = find_checkpoint(args.model_name_or_path)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    if args.vision_tower is None:
        if config.model_type != "llava":
            remedy = "set vision_tower to a CLIP" if config.model_type == "llama" else "use type='image-text'"
            raise ConfigError(
                f"type='{args.type}' reads a LLaVA, but model_name_or_path '{name}' is a '{config.model_type}' model: "
                f"{remedy}"
            )
        processor = load_processor(name, trust_remote_code=args.trust_remote_code)
        vision = config.vision_config
    else:
        if config.model_type != "llama":
            raise ConfigError(
                f"vision_tower makes a LLaVA of a LLaMA, but model_name_or_path '{name}' is a '{config.model_type}' "
                f"model: remove vision_tower, or name a LLaMA such as Vicuna or TinyLlama"
            )
        tower = find_checkpoint(args.vision_tower)
        vision = clip_vision_config(load_config(tower), tower)
        processor = load_llava_processor(name, tower, vision)
    own = {"image_size": vision.image_size, "image_token_len": (vision.image_size // vision.patch_size) ** 2}
    for key, value in own.items():
        if vars(args)[key] not in (None, value):
            raise ConfigError(
                f"model_args.{key}={vars(args)[key]}, but the vision tower of type='{args.type}' gives {value}: "
                f"remove {key}, or take another vision tower"
            )
    assert isinstance(processor, LlavaProcessor)
    return processor, vision


def _whole(args: ModelArgs, hardware: Hardware) -> LlavaForConditionalGeneration:
    """A LLaVA as it is published for transformers."""
    name = find_checkpoint(args.model_name_or_path)
    model = load_model(
        LlavaForConditionalGeneration,
        name,
        **load_options(load_config(name), args, hardware, keep=["lm_head", TOWERS["vision"], TOWERS["projector"]]),
    )
    assert isinstance(model, LlavaForConditionalGeneration)
    if args.pretrain_mm_mlp_adapter is not None:
        tensors = read_projector(args.pretrain_mm_mlp_adapter)
        wanted = ACTIVATIONS[is_single(tensors)]
        if model.config.projector_hidden_act != wanted:
            raise ConfigError(
                f"model_args.pretrain_mm_mlp_adapter {args.pretrain_mm_mlp_adapter} is for projector_hidden_act "
                f"'{wanted}', and '{name}' has '{model.config.projector_hidden_act}'"
            )
        set_projector(model, to_llava(tensors), args.pretrain_mm_mlp_adapter)
    return model


def _composed(args: ModelArgs, hardware: Hardware, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """A LLaMA, a CLIP and a projector that is fresh or from a file."""
    assert args.vision_tower is not None
    name, tower = find_checkpoint(args.model_name_or_path), find_checkpoint(args.vision_tower)
    options: dict[str, Any] = {
        "precision": hardware.precision,
        "device": hardware.device,
        "attn_implementation": args.attn_implementation,
    }
    language = load_model(
        AutoModelForCausalLM,
        name,
        quantization_config=quantization(
            load_config(name),
            load_in_4bit=args.load_in_4bit,
            load_in_8bit=args.load_in_8bit,
            precision=hardware.precision,
            keep=["lm_head"],
        ),
        **options,
    )
    vision = load_model(CLIPVisionModel, tower, **options)
    assert isinstance(vision, CLIPVisionModel)
    path = args.pretrain_mm_mlp_adapter
    tensors = None if path is None else read_projector(path)
    activation = ACTIVATIONS[tensors is not None and is_single(tensors)]
    model = compose(language, vision, processor, feature_layer=args.mm_vision_select_layer, activation=activation)
    if tensors is not None:
        set_projector(model, to_llava(tensors), str(path))
    return model
