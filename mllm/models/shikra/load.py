"""Loading of a LLaVA from one checkpoint, or from those of a LLaMA and a CLIP."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
)

from mllm.config.hardware import Hardware
from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.models.auto.family import keep_unquantized
from mllm.models.auto.towers import targets_in
from mllm.models.backbone.checkpoint_folder import find_checkpoint
from mllm.models.backbone.loading import load_config, load_model
from mllm.models.backbone.loading import load_processor as load_checkpoint_processor
from mllm.models.builder.build_chat import build_chat_encoder
from mllm.models.builder.build_options import checkpoint_of, load_options, quantization_bits
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.shikra.family import TOWERS
from mllm.models.shikra.options import ShikraArgs
from mllm.models.shikra.projector import ACTIVATIONS, is_single, read_projector, to_llava
from mllm.models.shikra.shikra import clip_vision_config, compose, load_llava_processor, set_projector


def load_processor(args: ShikraArgs) -> LlavaProcessor:
    """Load the processor; raise `ConfigError` if images do not have the size of the vision tower."""
    vision = load_vision_config(args)
    sizes = {"image_size": vision.image_size, "image_token_len": (vision.image_size // vision.patch_size) ** 2}
    for key, value in sizes.items():
        if vars(args)[key] not in (None, value):
            raise ConfigError(
                f"model_args.{key}={vars(args)[key]}, but the vision tower of type='{args.type}' gives {value}: "
                f"remove {key}, or choose another vision tower"
            )
    name = checkpoint_of(args)
    if args.vision_tower is not None:
        return load_llava_processor(name, clip_of(args), vision)
    processor = load_checkpoint_processor(name, trust_remote_code=args.trust_remote_code)
    assert isinstance(processor, LlavaProcessor)
    return processor


def load_vision_config(args: ShikraArgs) -> PretrainedConfig:
    """Return the config of the vision tower; raise `ConfigError` for a checkpoint of another architecture."""
    name = checkpoint_of(args)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    if args.vision_tower is None:
        if config.model_type != "llava":
            suggestion = f"use type='{FAMILIES.for_architecture(config.model_type).type}'"
            fix = "set vision_tower to a CLIP" if config.model_type == "llama" else suggestion
            raise ConfigError(
                f"type='{args.type}' reads a LLaVA, but model_name_or_path '{name}' is a '{config.model_type}' model: "
                f"{fix}"
            )
        vision: PretrainedConfig = config.vision_config
        return vision
    if config.model_type != "llama":
        raise ConfigError(
            f"vision_tower needs a LLaMA as language model, but model_name_or_path '{name}' is a "
            f"'{config.model_type}' model: remove vision_tower, or set a LLaMA such as Vicuna or TinyLlama"
        )
    tower = clip_of(args)
    return clip_vision_config(load_config(tower), tower)


def clip_of(args: ShikraArgs) -> str:
    """Return the folder or the name on the Hub of the CLIP checkpoint."""
    assert args.vision_tower is not None
    return find_checkpoint(args.vision_tower, with_weights=not args.from_scratch)


def build_encoder(args: ShikraArgs, processor: LlavaProcessor) -> ChatEncoder:
    """Return the encoder of conversations."""

    def grid() -> int:
        vision = load_vision_config(args)
        return int(vision.image_size // vision.patch_size)

    return build_chat_encoder(args, processor, grid=grid)


def load(args: ShikraArgs, hardware: Hardware, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Load a LLaVA, or compose it if `vision_tower` is set."""
    return _load_llava(args, hardware) if args.vision_tower is None else _compose_llava(args, hardware, processor)


def find_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return patterns of the Linear layers of 'language' and 'vision'."""
    return targets_in(model, TOWERS)


def _load_llava(args: ShikraArgs, hardware: Hardware) -> LlavaForConditionalGeneration:
    """Load a LLaVA in the layout of transformers."""
    name = checkpoint_of(args)
    keep = keep_unquantized(quantization_bits(args), TOWERS)
    options = load_options(args, hardware, keep=keep)
    model = load_model(LlavaForConditionalGeneration, name, **options)
    assert isinstance(model, LlavaForConditionalGeneration)
    if args.pretrain_mm_mlp_adapter is not None:
        tensors = read_projector(args.pretrain_mm_mlp_adapter)
        activation = ACTIVATIONS[is_single(tensors)]
        if model.config.projector_hidden_act != activation:
            raise ConfigError(
                f"model_args.pretrain_mm_mlp_adapter {args.pretrain_mm_mlp_adapter} is for projector_hidden_act "
                f"'{activation}', but '{name}' has '{model.config.projector_hidden_act}'"
            )
        set_projector(model, to_llava(tensors), args.pretrain_mm_mlp_adapter)
    return model


def _compose_llava(args: ShikraArgs, hardware: Hardware, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Compose a LLaVA of a LLaMA, a CLIP and a projector, which is new or read from a file."""
    assert args.vision_tower is not None
    options: dict[str, Any] = load_options(args, hardware, keep=["lm_head"])
    language = load_model(AutoModelForCausalLM, checkpoint_of(args), **options)
    vision = load_model(
        CLIPVisionModel,
        clip_of(args),
        **{**options, "quantization_config": None},
    )
    assert isinstance(vision, CLIPVisionModel)
    path = args.pretrain_mm_mlp_adapter
    tensors = None if path is None else read_projector(path)
    activation = ACTIVATIONS[tensors is not None and is_single(tensors)]
    model = compose(language, vision, processor, feature_layer=args.mm_vision_select_layer, activation=activation)
    if tensors is not None:
        set_projector(model, to_llava(tensors), str(path))
    return model
