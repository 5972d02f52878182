"""Vision parts of models, as students and as teachers: loading, assembly and encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoImageProcessor, PretrainedConfig, PreTrainedModel

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.config.trainable import trained_parts
from mllm.family import Family
from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.files import find_adapter, holds_lora
from mllm.models.adapters.full import train_in_full
from mllm.models.adapters.targets import pattern_of
from mllm.models.adapters.trained_file import IN_MERGED, load_trained
from mllm.models.backbone.load_errors import explained
from mllm.models.backbone.loading import load_config, load_model, quantization
from mllm.models.builder.build_heads import build_regression_head
from mllm.models.builder.build_options import checkpoint_of, lora_options, towers_in_full
from mllm.models.encoding.views import ViewEncoder
from mllm.models.vision_model import VisionModel
from mllm.run_files import TRAINED

SIGLIP_TARGETS = r"(.*\.)?encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


def load_part(kind: type[PreTrainedModel], args: ModelArgs, hardware: Hardware, keep: list[str]) -> PreTrainedModel:
    """Load the vision part of a checkpoint as a model of class `kind`, frozen, in evaluation mode.

    Convolutions overflow in fp16, and trained weights must not be rounded after every update: both are stored in fp32.
    """
    name = checkpoint_of(args)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    precision = "fp32" if hardware.precision == "fp16" else hardware.precision
    return load_model(
        kind,
        name,
        precision="fp32" if trained_parts(args).full else precision,
        device=hardware.device,
        quantization_config=quantization(
            config,
            load_in_4bit=args.load_in_4bit,
            load_in_8bit=args.load_in_8bit,
            precision=precision,
            keep=keep,
        ),
        attn_implementation=args.attn_implementation,
        init_seed=args.init_seed if args.from_scratch else None,
    )


def load_processor(args: ModelArgs) -> Any:
    """Load the image processor of a checkpoint."""
    name = checkpoint_of(args)
    with explained(name):
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=args.trust_remote_code)


def assemble(
    family: Family, model: PreTrainedModel, processor: Any, args: ModelArgs, hardware: Hardware
) -> VisionModel:
    """Return the trainable vision part: with an adapter or trained in full, and with a head for measures."""
    towers = dict(family.towers(model))
    folder = None if args.adapter_path is None else find_adapter(args.adapter_path)
    backbone = attach_adapter(
        model,
        adapter_path=args.adapter_path if folder is None or holds_lora(folder) else None,
        targets=dict(family.lora_targets(model)),
        **lora_options(args),
    )
    train_in_full(model, towers, towers_in_full(args, towers))
    head = build_regression_head(args, _width(model, towers))
    trainable = VisionModel(backbone, towers, family.layers, head=head, side=image_side(processor))
    trainable.heads.to(model.device)
    if folder is not None:
        load_trained(trainable, folder, headless=head is None)
    elif head is not None and (Path(args.model_name_or_path) / TRAINED).is_file():
        load_trained(trainable, args.model_name_or_path, IN_MERGED)
    if head is not None and (Path(folder or args.model_name_or_path) / TRAINED).is_file():
        head.is_scaled = True  # its weights are in the units of the training split that it was trained on
    return trainable


def build_encoder(args: ModelArgs, processor: Any) -> ViewEncoder:
    """Return the encoder of named views."""
    config = load_config(checkpoint_of(args), trust_remote_code=args.trust_remote_code)
    head = build_regression_head(args, width=1)
    views, measures = ((), ()) if head is None else (head.views, head.measures)
    return ViewEncoder(processor, views=views, measures=measures, tokens=_image_tokens(config))


def vision_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return the pattern of the layers of a vision part."""
    return {"vision": tower_targets(model, "model.vision_tower")}


def tower_targets(model: PreTrainedModel, tower: str) -> str:
    """Return the pattern of a vision tower's layers for LoRA: Linear layers of SigLIP, dense convolutions of MobileNet.

    MobileNet-v5 has 282 convolutions: 237 dense ones, which include the attention projections, and 45 depthwise ones,
    whose number of groups would have to divide the rank.
    """
    dense = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and name.startswith(f"{tower}.timm_model.")
    }
    return pattern_of(dense, model) if dense else SIGLIP_TARGETS


def image_side(processor: Any) -> int:
    """Return the pixels on each side of the images that an image processor returns."""
    size = processor.size
    return int(size["height"] if "height" in size else size["shortest_edge"])


def _width(model: PreTrainedModel, towers: dict[str, str]) -> int:
    """Return the width of the features: that of the language model if there is a projector, else that of the tower."""
    config: Any = model.config
    return int(config.get_text_config().hidden_size if "projector" in towers else config.hidden_size)


def _image_tokens(config: PretrainedConfig) -> int:
    """Return the number of features of one image."""
    values = config.to_dict()
    for key in ("vision_soft_tokens_per_image", "mm_tokens_per_image"):
        if key in values:
            return int(values[key])
    vision = values.get("vision_config", values)
    return int((vision["image_size"] // vision["patch_size"]) ** 2)
