"""Loading of models by transformers' AutoModelForImageTextToText, with processor and encoder."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.models.adapters.language_layers import kernel_layers
from mllm.models.auto.default_templates import DEFAULTS
from mllm.models.auto.family import (
    TYPES_OF_JOINT_POSITIONS,
    TYPES_OF_LAST_STATE,
    TYPES_OF_SUFFIX,
    TYPES_OF_TOKEN_KINDS,
    WITHOUT_CONVERSATIONS,
    keep_unquantized,
)
from mllm.models.auto.towers import find_towers
from mllm.models.backbone.load_errors import explained
from mllm.models.backbone.loading import load_config, load_model, type_advice
from mllm.models.backbone.vision_layers import fusion_message, image_head_message, image_reader
from mllm.models.builder.build_chat import build_chat_encoder, load_chat_processor
from mllm.models.builder.build_options import checkpoint_of, load_options, quantization_bits
from mllm.models.encoding.chat import ChatEncoder


def load_processor(args: ModelArgs) -> ProcessorMixin:
    """Load the processor, with a chat template. Raise `ConfigError` for an architecture that the Auto class lacks."""
    architecture = load_known_config(args).model_type
    processor = load_chat_processor(args)
    tokenizer: Any = processor.tokenizer
    if architecture in TYPES_OF_TOKEN_KINDS:
        processor.return_mm_token_type_ids = True
    if architecture in DEFAULTS and not (processor.chat_template or tokenizer.chat_template):
        processor.chat_template = DEFAULTS[architecture]
    return processor


def load(args: ModelArgs, hardware: Hardware, processor: ProcessorMixin) -> PreTrainedModel:
    """Load any model that AutoModelForImageTextToText supports: LLaVA, Qwen-VL, PaliGemma, Idefics..."""
    if args.fuse_vision_layers:
        _refuse_fusion(load_known_config(args))
    skeleton = build_skeleton(args)
    keep = [*keep_unquantized(quantization_bits(args), find_towers(skeleton)), *kernel_layers(skeleton)]
    name = checkpoint_of(args)
    return load_model(AutoModelForImageTextToText, name, **load_options(args, hardware, keep=keep))


def _refuse_fusion(config: PretrainedConfig) -> None:
    """Raise `ConfigError`, before weights are loaded, for a projector that reads no layer of the vision tower."""
    layer = config.to_dict().get("vision_feature_layer")
    if not isinstance(layer, int) or config.model_type in TYPES_OF_LAST_STATE:
        raise ConfigError(fusion_message(f"of the architecture '{config.model_type}'"))


def build_skeleton(args: ModelArgs) -> PreTrainedModel:
    """Return the model on `meta`."""
    name, config = checkpoint_of(args), load_known_config(args)
    with torch.device("meta"), explained(name):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=args.trust_remote_code)


def load_known_config(args: ModelArgs) -> PretrainedConfig:
    """Load the config; raise `ConfigError` for another architecture than a decoder of AutoModelForImageTextToText."""
    name = checkpoint_of(args)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    if (reason := WITHOUT_CONVERSATIONS.get(config.model_type)) is not None:
        raise ConfigError(
            f"model_name_or_path '{name}' is a '{config.model_type}' model, which {reason}; choose another architecture"
        )
    brings_code = args.trust_remote_code and "AutoModelForImageTextToText" in config.to_dict().get("auto_map", {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not brings_code:
        raise ConfigError(
            f"type='{args.type}' loads the architectures of AutoModelForImageTextToText (llava, qwen2_vl, gemma3 ...), "
            f"but model_name_or_path '{name}' is a '{config.model_type}' model: {type_advice(config)}"
        )
    if config.model_type in TYPES_OF_JOINT_POSITIONS:
        raise ConfigError(
            f"model_name_or_path '{name}' is a '{config.model_type}' model, whose code in transformers numbers the "
            "images of all samples of a batch together, so a sample would be read otherwise than alone; choose "
            "another architecture"
        )
    if config.is_encoder_decoder:
        other = FAMILIES.for_architecture(config.model_type).type
        advice = f"use type='{other}'" if other != args.type else "no type trains encoder-decoders of this kind"
        raise ConfigError(
            f"type='{args.type}' trains decoders, but model_name_or_path '{name}' is a '{config.model_type}' model, an "
            f"encoder-decoder: {advice}"
        )
    return config


def build_encoder(args: ModelArgs, processor: ProcessorMixin) -> ChatEncoder:
    """Return the encoder of a model that reads images."""
    types = load_known_config(args).model_type in TYPES_OF_SUFFIX
    return build_chat_encoder(args, processor, grid=lambda: vision_grid(args), types_of_suffix=types)


def vision_grid(args: ModelArgs) -> int:
    """Return the patches on each side of an image in the vision tower. Raise `ConfigError` without such a tower."""
    config: Any = load_known_config(args)
    vision = config.to_dict().get("vision_config") or {}
    image, patch = vision.get("image_size"), vision.get("patch_size")
    if not isinstance(image, int) or not isinstance(patch, int):
        reader = image_reader(args.heads)
        assert reader is not None, "only heads that read the image ask for the grid"
        raise ConfigError(image_head_message(reader, f"'{config.model_type}'"))
    return image // patch
