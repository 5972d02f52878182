"""A model without its weights: what would train in it is counted before anything is loaded."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, PreTrainedModel

from mllm.config.defaults import SHIKRA_TYPES
from mllm.config.schema import ModelArgs
from mllm.models.adapters.targets import GEMMA3_TARGETS, matching, resolve_target
from mllm.models.backbone.loading import explained, find_checkpoint, load_config
from mllm.models.builder.build_auto import find_towers, lora_targets
from mllm.models.builder.build_seq2seq import seq2seq_targets
from mllm.models.builder.build_text import language_targets, language_tower

TEXT_CLASSES = {"causal-lm": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}


def count_lora(args: ModelArgs) -> int | None:
    """How many numbers the LoRA has that `args` would train, from the checkpoint's `config.json` alone.

    None where the rank is that of a starting adapter, or where more than a LoRA trains (shikra, perceptionGPT, and
    part='vision' with its head). Raises `ConfigError` for a checkpoint that is not there and a `lora_target` that
    matches nothing.
    """
    if args.lora_r is None or args.type in SHIKRA_TYPES or args.part is not None:
        return None
    name = find_checkpoint(args.model_name_or_path)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    kind = TEXT_CLASSES.get(args.type, AutoModelForImageTextToText)
    with torch.device("meta"), explained(name):
        model = kind.from_config(config, trust_remote_code=args.trust_remote_code)
    pattern = resolve_target(model, args.lora_target, _targets(args.type, model))
    layers = [model.get_submodule(name) for name in matching(pattern, model)]
    return sum(
        args.lora_r * (layer.in_features + layer.out_features) for layer in layers if isinstance(layer, nn.Linear)
    )


def _targets(type_name: str, model: PreTrainedModel) -> dict[str, str]:
    """The patterns that the builder of a type gives to its LoRA."""
    if type_name == "medgemma":
        return GEMMA3_TARGETS
    if type_name == "causal-lm":
        return language_targets(model, {"language": language_tower(model)})
    return seq2seq_targets(model) if type_name == "seq2seq" else lora_targets(model, find_towers(model))
