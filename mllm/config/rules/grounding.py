"""Rules for what finds boxes and masks: heads and their objectives, and the parts that Shikra composes."""

from __future__ import annotations

import logging
from dataclasses import fields

from mllm.config.checkpoint import Checkpoint
from mllm.config.defaults import SHIKRA_TYPES
from mllm.config.schema import ModelArgs, RunConfig
from mllm.errors import ConfigError

logger = logging.getLogger(__name__)

SHIKRA_KEYS = (
    *("vision_tower", "mm_vision_select_layer", "freeze_backbone"),
    *("tune_mm_mlp_adapter", "freeze_mm_mlp_adapter", "pretrain_mm_mlp_adapter"),
)
READERS = {"BoxLoss": "box", "MaskLoss": "mask", "MeasureLoss": "measures"}
"""Which head's findings an objective reads."""
CONVERT = "python mllm/pipeline/convert.py --model {} --out FOLDER"


def refuse_shikra_keys(config: RunConfig) -> None:
    """Refuses Shikra's own keys with another type, which would read none of them."""
    args = config.model_args
    if args.type in SHIKRA_TYPES:
        return
    defaults = {field.name: field.default for field in fields(ModelArgs)}
    for key in SHIKRA_KEYS:
        if vars(args)[key] != defaults[key]:
            raise ConfigError(
                f"{config.place('model_args', key)}: model_args.{key} is only possible with type='shikra' or "
                f"'perceptionGPT', and the type is '{args.type}': remove it"
            )


def refuse_wrong_llava(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint that a LLaVA can neither be read from nor composed with."""
    args, family = config.model_args, checkpoint.model_type
    if args.type not in SHIKRA_TYPES or family is None:
        return
    name = args.model_name_or_path
    place = config.place("model_args", "model_name_or_path")
    if checkpoint.is_original_llava:
        raise ConfigError(
            f"{place}: {name} is a checkpoint in the layout of the original LLaVA or Shikra: convert it with "
            f"{CONVERT.format(name)} and name that folder"
        )
    if family == "llama" and args.vision_tower is None:
        raise ConfigError(
            f"{place}: {name} is a language model without a vision tower: set model_args.vision_tower to a CLIP "
            f"checkpoint such as openai/clip-vit-large-patch14"
        )
    if family == "llava" and args.vision_tower is not None:
        raise ConfigError(
            f"{config.place('model_args', 'vision_tower')}: {name} is a LLaVA with a vision tower of its own: remove "
            f"vision_tower, or name a language model as model_name_or_path"
        )
    if family not in ("llama", "llava"):
        raise ConfigError(
            f"{place}: type='{args.type}' reads a LLaVA, or a LLaMA with a CLIP as vision_tower, and {name} is a "
            f"{checkpoint.title} checkpoint: use type='image-text' for other models that read images"
        )


def refuse_freezing_conflicts(config: RunConfig) -> None:
    """Refuses Shikra's keys that say what trains where they contradict each other or leave nothing to train."""
    args = config.model_args
    added = bool(args.heads) or (args.box_format is not None and args.box_format["type"] == "location_tokens")
    if args.tune_mm_mlp_adapter and args.freeze_mm_mlp_adapter:
        raise ConfigError(
            f"{config.place('model_args', 'tune_mm_mlp_adapter')}: tune_mm_mlp_adapter=True and "
            f"freeze_mm_mlp_adapter=True ({config.place('model_args', 'freeze_mm_mlp_adapter')}) exclude each other: "
            f"set one of them to False"
        )
    if args.tune_mm_mlp_adapter and added:
        raise ConfigError(
            f"{config.place('model_args', 'tune_mm_mlp_adapter')}: tune_mm_mlp_adapter=True trains the projector "
            f"alone, but heads and added tokens must train too: use freeze_backbone=True"
        )
    if args.freeze_backbone and args.freeze_mm_mlp_adapter and not added:
        raise ConfigError(
            f"{config.place('model_args', 'freeze_backbone')}: freeze_backbone=True and freeze_mm_mlp_adapter=True "
            f"({config.place('model_args', 'freeze_mm_mlp_adapter')}) leave nothing to train: set one of them to False"
        )
    if args.freeze_mm_mlp_adapter and args.vision_tower is not None and args.pretrain_mm_mlp_adapter is None:
        raise ConfigError(
            f"{config.place('model_args', 'freeze_mm_mlp_adapter')}: freeze_mm_mlp_adapter=True would freeze a fresh "
            f"projector, which says nothing of an image: set pretrain_mm_mlp_adapter to a trained one, or "
            f"freeze_mm_mlp_adapter=False"
        )
    if without_lora(args) and args.adapter_path is not None and not args.merge_lora:
        key = "freeze_backbone" if args.freeze_backbone else "tune_mm_mlp_adapter"
        raise ConfigError(
            f"{config.place('model_args', key)}: {key}=True trains no LoRA, and adapter_path names one that would be "
            f"continued: set merge_lora=True to fold it into the weights first, or {key}=False"
        )


def without_lora(args: ModelArgs) -> bool:
    """Whether the language model stays as it is, without a LoRA."""
    return args.freeze_backbone or args.tune_mm_mlp_adapter or args.train_vision


def refuse_objectives_without_heads(config: RunConfig) -> None:
    """Refuses a loss of boxes or masks without the head that finds them; says where a head has no loss."""
    read = set()
    for name, options in config.objectives.items():
        head = READERS.get(options["type"])
        if head is None:
            continue
        read.add(head)
        if head not in config.model_args.heads:
            kind = {"box": "BoxHead", "mask": "MaskHead", "measures": "RegressionHead"}[head]
            raise ConfigError(
                f"{config.place('objectives', name)}: objectives.{name} ({options['type']}) needs "
                f"model_args.heads = dict({head}=dict(type='{kind}'))"
            )
    for head in config.model_args.heads.keys() - read:
        loss = next(name for name, read_head in READERS.items() if read_head == head)
        logger.warning("no objective trains the %s head: add objectives = dict(%s=dict(type='%s'))", head, head, loss)
