"""The last steps of every builder: adapter, precision, encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.files import find_adapter, holds_lora
from mllm.models.adapters.trained_file import FILE, IN_MERGED, load_trained
from mllm.models.backbone.added_tokens import TokenRows, add_tokens
from mllm.models.backbone.half_safe import keep_residual_in_fp32
from mllm.models.backbone.vision_layers import VisionLayers, fuse_language_layers
from mllm.models.builder.build_options import lora_options
from mllm.models.encoding.box_formats import BoxFormat, NormalizedText, PerceptionToken
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.marks import MarkWriter
from mllm.models.encoding.text_processor import TextProcessor
from mllm.models.heads import BoxHead, MaskHead
from mllm.models.language_model import PerceptionModel
from mllm.registry import BOX_FORMATS, HEADS, build
from mllm.structures import Bundle


def assemble(
    model: PreTrainedModel,
    processor: ProcessorMixin | TextProcessor,
    *,
    towers: dict[str, str],
    targets: dict[str, str],
    args: ModelArgs,
    hardware: Hardware,
    trains_projector: bool = False,
) -> Bundle:
    """Add tokens, attach the adapter, keep half precision safe, add heads, and put model and encoder together.

    `towers` names the model's parts by the prefix of their modules; `targets` holds, by the name of a tower, a regular
    expression over the full names of the modules that LoRA changes there. `trains_projector`: in full, in fp32.
    """
    for key in ("heads", "fuse_vision_layers"):
        if vars(args)[key] and "vision" not in towers:
            raise ConfigError(
                f"model_args.{key} is for models that read images, and type='{args.type}' reads text alone: remove it"
            )
    box_format = chosen_format(args)
    ids = add_tokens(model, processor.tokenizer, box_format.tokens) if box_format.tokens else []
    modules = dict(model.named_modules())
    fuses = bool(args.fuse_vision_layers)
    fusion = fuse_language_layers(model, modules[towers["vision"]]) if fuses else None
    folder = None if args.adapter_path is None else find_adapter(args.adapter_path)
    adapted = attach_adapter(
        model,
        adapter_path=args.adapter_path if folder is None or holds_lora(folder) else None,
        targets=targets,
        **lora_options(args),
    )
    if hardware.precision == "fp16":
        keep_residual_in_fp32(adapted)
    if trains_projector:
        train_in_fp32(modules[towers["projector"]])
    rows = TokenRows(model, ids) if ids else None
    heads, layers = build_heads(model, processor, towers, args)
    perception = PerceptionModel(adapted, towers, heads=heads, layers=layers, rows=rows, fusion=fusion)
    for part in (perception.heads, fusion):
        if part is not None:
            part.to(model.device)  # where quantized weights are already, and nobody moves them later
    if folder is not None:
        load_trained(perception, folder)
    elif (Path(args.model_name_or_path) / FILE).is_file():
        load_trained(perception, args.model_name_or_path, IN_MERGED)
    mask_head = perception.mask_head
    marks = MarkWriter(
        box_format,
        pad_to_square=bool(args.pad_to_square),
        mask_size=None if mask_head is None else mask_head.size,
    )
    encoder = ChatEncoder(
        processor,
        max_length=args.max_length,
        turn_end=args.turn_end,
        system=args.system,
        chat_template=args.chat_template,
        marks=marks,
    )
    return Bundle(perception, encoder)


def chosen_format(args: ModelArgs) -> BoxFormat:
    """How boxes stand in the model's texts; raises `ConfigError` where format and heads do not go together."""
    if args.box_format is None:
        return PerceptionToken() if args.heads else NormalizedText()
    box_format: BoxFormat = build(BOX_FORMATS, args.box_format, "model_args.box_format")
    if box_format.needs_heads != bool(args.heads):
        wanted = "needs model_args.heads" if box_format.needs_heads else "writes boxes as text, and heads read a token"
        raise ConfigError(f"model_args.box_format {args.box_format['type']} {wanted}: leave box_format or heads out")
    return box_format


def build_heads(
    model: PreTrainedModel, processor: ProcessorMixin | TextProcessor, towers: dict[str, str], args: ModelArgs
) -> tuple[dict[str, nn.Module], VisionLayers | None]:
    """The heads that `args` name, seeded, and the vision layers that a mask is read from."""
    width = model.config.get_text_config().hidden_size
    heads: dict[str, nn.Module] = {}
    layers = None
    for name, options in sorted(args.heads.items(), key=lambda item: item[0] != "mask"):  # a box may read the mask
        kind = HEADS.find(options["type"])
        provided: dict[str, Any] = {"width": width}
        if kind is MaskHead:
            tower = dict(model.named_modules())[towers["vision"]]
            layers = VisionLayers(tower, model.config.vision_config, processor)
            provided |= {"vision_width": layers.width, "layers": len(layers), "grid": layers.grid}
        if kind is BoxHead and isinstance(mask := heads.get("mask"), MaskHead):
            provided["mask_size"] = mask.size
        heads[name] = build_head(name, options, **provided)
    return heads, layers


def build_head(name: str, options: Mapping[str, Any], **provided: Any) -> nn.Module:
    """Build a head with the same initial weights in every process and run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head: nn.Module = build(HEADS, options, f"model_args.heads.{name}", **provided)
        return head


def train_in_fp32(module: nn.Module) -> None:
    """Lets all of a module train in fp32, whatever it is stored as and whatever stands before and behind it."""
    module.float().requires_grad_(True)
    module.register_forward_pre_hook(lambda _, arguments: tuple(tensor.float() for tensor in arguments))
