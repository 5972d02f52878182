"""The vision part of a model, to be taught or to teach: types `gemma3n-student`, `medgemma` and `medsiglip`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoImageProcessor, PreTrainedModel

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.files import find_adapter, holds_lora
from mllm.models.adapters.targets import pattern_of
from mllm.models.adapters.trained_file import FILE, IN_MERGED, load_trained
from mllm.models.backbone.loading import explained, find_checkpoint, load_config, quantization
from mllm.models.backbone.vision_part import SIGHTS, load_vision
from mllm.models.builder.build_options import lora_options
from mllm.models.builder.build_shared import build_head, train_in_fp32
from mllm.models.encoding.views import ViewEncoder
from mllm.models.heads import RegressionHead
from mllm.models.vision_model import VisionModel
from mllm.registry import MODELS
from mllm.structures import Bundle

SIGLIP_TARGETS = r"(.*\.)?encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


@MODELS.register_module("medsiglip")
def build_vision(args: ModelArgs, hardware: Hardware) -> Bundle:
    """A SigLIP vision tower alone, such as MedSigLIP; with part='vision' that of Gemma 3 and Gemma 3n too."""
    name = find_checkpoint(args.model_name_or_path)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    if args.image_size is not None or args.image_token_len is not None:
        raise ConfigError(
            "model_args.image_size and image_token_len are for models that speak: with part='vision' images have the "
            "checkpoint's own size; remove them"
        )
    model = load_vision(
        name,
        config,
        # Its convolutions overflow fp16, and what trains whole must not be rounded after every update.
        precision="fp32" if hardware.precision == "fp16" or args.train_vision else hardware.precision,
        device=hardware.device,
        quantization_config=quantization(
            config,
            load_in_4bit=args.load_in_4bit,
            load_in_8bit=args.load_in_8bit,
            precision="fp32" if hardware.precision == "fp16" else hardware.precision,
            keep=["multi_modal_projector"],
        ),
        attn_implementation=args.attn_implementation,
    )
    with explained(name):
        processor: Any = AutoImageProcessor.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    sight = SIGHTS[config.model_type]
    folder = None if args.adapter_path is None else find_adapter(args.adapter_path)
    backbone = model if args.train_vision else _adapted(model, args, sight.towers["vision"], folder)
    head = build_measures(args, _width(model))
    seeing = VisionModel(backbone, sight.towers, sight.layers, head=head, side=side_of(processor))
    if args.train_vision:
        train_in_fp32(model.get_submodule(sight.towers["vision"]))
    seeing.heads.to(model.device)
    if folder is not None:
        load_trained(seeing, folder, headless=head is None)
    elif head is not None and (Path(args.model_name_or_path) / FILE).is_file():
        load_trained(seeing, args.model_name_or_path, IN_MERGED)
    if head is not None and (Path(folder or args.model_name_or_path) / FILE).is_file():
        head.is_scaled = True  # what it has learned is in the units of its own training split
    views, measures = ((), ()) if head is None else (head.views, head.measures)
    return Bundle(seeing, ViewEncoder(processor, views=views, measures=measures, tokens=_tokens(model)))


def _adapted(model: PreTrainedModel, args: ModelArgs, tower: str, folder: Any) -> nn.Module:
    """The model with a LoRA in its vision tower."""
    return attach_adapter(
        model,
        adapter_path=args.adapter_path if folder is None or holds_lora(folder) else None,
        targets={"vision": vision_targets(model, tower)},
        **lora_options(args),
    )


def vision_targets(model: PreTrainedModel, tower: str) -> str:
    """A pattern of the layers of a vision tower for LoRA: SigLIP's Linear layers, MobileNet's dense convolutions.

    MobileNet-v5 has 282 convolutions: 237 dense ones, attention projections among them, and 45 depthwise ones, whose
    groups no rank divides.
    """
    dense = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and name.startswith(f"{tower}.timm_model.")
    }
    return pattern_of(dense, model) if dense else SIGLIP_TARGETS


def build_measures(args: ModelArgs, width: int) -> RegressionHead | None:
    """The head that `args` name, seeded; None for a teacher, which has none."""
    if not args.heads:
        return None
    head = build_head("measures", args.heads["measures"], width=width)
    assert isinstance(head, RegressionHead), "the rules refuse other heads"
    return head


def side_of(processor: Any) -> int:
    """Pixels of a side of what an image processor gives."""
    size = processor.size
    return int(size["height"] if "height" in size else size["shortest_edge"])


def _width(model: PreTrainedModel) -> int:
    """The width of the features that the vision part gives: that of the language model behind it, if any."""
    config: Any = model.config
    return int(
        config.get_text_config().hidden_size if config.model_type != "siglip_vision_model" else config.hidden_size
    )


def _tokens(model: PreTrainedModel) -> int:
    """Places of one image that the vision part gives."""
    values = model.config.to_dict()
    for key in ("vision_soft_tokens_per_image", "mm_tokens_per_image"):
        if key in values:
            return int(values[key])
    return int((values["image_size"] // values["patch_size"]) ** 2)
