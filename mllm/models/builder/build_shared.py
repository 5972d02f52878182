"""Assembly of a trainable model that generates text: added tokens, adapter, precision and heads."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, ProcessorMixin

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.family import Family
from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.files import find_adapter, holds_lora
from mllm.models.adapters.full import autocast_dtype, train_in_full
from mllm.models.adapters.trained_file import IN_MERGED, load_trained
from mllm.models.backbone.added_tokens import TokenRows, add_tokens
from mllm.models.backbone.half_safe import keep_residual_in_fp32
from mllm.models.backbone.vision_layers import fuse_language_layers
from mllm.models.builder.build_chat import build_box_format
from mllm.models.builder.build_heads import build_heads
from mllm.models.builder.build_options import lora_options, towers_in_full
from mllm.models.encoding.text_processor import TextProcessor
from mllm.models.language_model import LanguageModel
from mllm.run_files import TRAINED


def assemble(
    family: Family,
    model: PreTrainedModel,
    processor: ProcessorMixin | TextProcessor,
    args: ModelArgs,
    hardware: Hardware,
) -> LanguageModel:
    """Return the trainable model: tokens are added, the adapter is attached, heads are built and loaded."""
    towers = dict(family.towers(model))
    targets = family.lora_targets(model)
    tokens = build_box_format(args).tokens
    ids = add_tokens(model, processor.tokenizer, tokens) if tokens else []
    modules = dict(model.named_modules())
    tower = modules[towers["vision"]] if "vision" in towers else None
    fusion = fuse_language_layers(model, tower) if args.fuse_vision_layers else None
    folder = None if args.adapter_path is None else find_adapter(args.adapter_path)
    adapted = attach_adapter(
        model,
        adapter_path=args.adapter_path if folder is None or holds_lora(folder) else None,
        targets=targets,
        **lora_options(args),
    )
    full = towers_in_full(args, towers)
    train_in_full(model, towers, full)
    if hardware.precision == "fp16":
        keep_residual_in_fp32(adapted)
    rows = TokenRows(model, ids) if ids else None
    heads, layers = build_heads(model, processor, towers, args)
    trainable = LanguageModel(adapted, towers, heads=heads, layers=layers, rows=rows, fusion=fusion)
    trainable.autocast_dtype = autocast_dtype(full, hardware.precision)
    for part in (trainable.heads, fusion):
        if part is not None:
            part.to(model.device)  # quantized weights are on it already, and the trainer does not move them
    if folder is not None:
        load_trained(trainable, folder)
    elif (Path(args.model_name_or_path) / TRAINED).is_file():
        load_trained(trainable, args.model_name_or_path, IN_MERGED)
    return trainable
