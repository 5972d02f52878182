"""Composition of a LLaVA from a LLaMA and a CLIP, with all widths from their configs (Shikra, arXiv:2306.15195)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mllm.errors import ConfigError
from mllm.models.backbone.added_tokens import add_tokens
from mllm.models.backbone.load_errors import explained
from mllm.models.shikra.conversation import vicuna_template
from mllm.structures import IMAGE

PAD = "<pad>"
SEED = 0
"""Seed of a new projector. It is constant, so an adapter is loaded onto the same projector."""


def compose(
    language: PreTrainedModel,
    vision: CLIPVisionModel,
    processor: LlavaProcessor,
    *,
    feature_layer: int,
    activation: str = "gelu",
) -> LlavaForConditionalGeneration:
    """Return the LLaVA of a loaded LLaMA and a loaded CLIP tower with a new projector. Weights are not copied.

    `feature_layer` is the hidden state of the tower that the projector reads. The vocabulary is extended by the
    tokens of the processor; their rows are the mean row.
    """
    extend_vocabulary(language, processor.tokenizer)
    vision_config: Any = vision.config
    depth, grid = vision_config.num_hidden_layers, vision_config.image_size // vision_config.patch_size
    if not -depth - 1 <= feature_layer <= depth:
        raise ConfigError(
            f"model_args.mm_vision_select_layer={feature_layer}: the vision tower has {depth} layers, so it must be "
            f"from {-depth - 1} to {depth}"
        )
    config_class: Any = LlavaConfig  # the signature lacks the common arguments of configs
    config = config_class(
        text_config=language.config,
        vision_config=vision.config,
        image_token_index=processor.image_token_id,
        image_seq_length=grid**2,
        projector_hidden_act=activation,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=language.config.tie_word_embeddings,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=language.config.bos_token_id,
        eos_token_id=language.config.eos_token_id,
        dtype=language.dtype,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model = language.base_model
    model.lm_head = language.get_output_embeddings()
    nn.Module.to(vision, language.device)
    model.model.vision_tower = vision
    projector = model.model.multi_modal_projector.to_empty(device=language.device)
    _initialize(projector)
    projector.to(language.dtype)
    model.generation_config = language.generation_config
    _mark_quantized(model, language)
    return model.requires_grad_(False).eval()


def _mark_quantized(model: Any, language: Any) -> None:
    """Copy the attributes that transformers and PEFT read from a quantized model from `language` to `model`."""
    attributes = ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "hf_quantizer")
    for name in attributes:
        if name in vars(language):
            vars(model)[name] = vars(language)[name]


@torch.no_grad()
def _initialize(projector: nn.Module) -> None:
    """Initialize a projector with the seed `SEED`, as PyTorch initializes Linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for module in projector.modules():
            if isinstance(module, nn.Linear):
                drawn = nn.Linear(module.in_features, module.out_features)
                module.weight.copy_(drawn.weight)
                module.bias.copy_(drawn.bias)


@torch.no_grad()
def extend_vocabulary(language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add a row to embedding and output for each token that `load_llava_processor` added: the mean row, frozen."""
    table: Any = language.get_input_embeddings()
    before = len(table.weight)
    added = [IMAGE, *([PAD] if tokenizer.pad_token == PAD else [])]
    add_tokens(language, tokenizer, added)
    modules: list[Any] = [language.get_input_embeddings(), language.get_output_embeddings()]
    for module in modules:
        weight = module.weight
        weight[before:] = weight[:before].float().mean(dim=0).to(weight.dtype)


def load_llava_processor(language: str, vision: str, config: PretrainedConfig) -> LlavaProcessor:
    """Load the processor: the template of Vicuna, the images of CLIP, and the new tokens `<image>` and `<pad>`."""
    with explained(language):
        tokenizer = AutoTokenizer.from_pretrained(language)
    with explained(vision):
        images = AutoImageProcessor.from_pretrained(vision)
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    return build_llava_processor(images, tokenizer, config.patch_size)


def build_llava_processor(
    images: Any, tokenizer: PreTrainedTokenizerBase, patch_size: int, image: str = IMAGE, image_text: str = f"{IMAGE}\n"
) -> LlavaProcessor:
    """Return a processor with the template of Vicuna; a padding token is added to the tokenizer if it has none.

    `image` is the token of a patch, and `image_text` the text that represents an image in the template.
    """
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token
        chat_template=vicuna_template(image_text, tokenizer.eos_token),
        image_token=image,
    )


def clip_vision_config(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """Return the vision part of a CLIP's config; raise `ConfigError` for another architecture."""
    if config.model_type == "clip":
        vision: PretrainedConfig = config.vision_config
        return vision
    if config.model_type != "clip_vision_model":
        raise ConfigError(
            f"model_args.vision_tower '{name}' is a '{config.model_type}' model, but must be a CLIP such as "
            f"openai/clip-vit-large-patch14"
        )
    return config


@torch.no_grad()
def set_projector(model: LlavaForConditionalGeneration, tensors: dict[str, Tensor], source: str) -> None:
    """Copy the tensors of `projector.to_llava`, read from `source`, into a model.

    Raise `ConfigError` for a different shape.
    """
    for name, parameter in model.model.multi_modal_projector.named_parameters():
        if parameter.shape != tensors[name].shape:
            raise ConfigError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, but the model needs "
                f"{tuple(parameter.shape)}: it belongs to another language model or vision tower"
            )
        parameter.copy_(tensors[name])
