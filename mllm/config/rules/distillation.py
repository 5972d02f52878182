"""Rules for a model that sees and does not speak, and for a teacher that it learns from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mllm.config import checking
from mllm.config.checkpoint import Checkpoint
from mllm.config.origins import Places
from mllm.config.schema import DistillArgs, ModelArgs, RunConfig
from mllm.errors import ConfigError

logger = logging.getLogger(__name__)

SEEING = {"gemma3n-student": "gemma3n", "medgemma": "gemma3", "medsiglip": "siglip"}
"""The types that have a `part='vision'`, and the architecture that each reads."""
TOWERS = {"siglip_vision_model": "siglip"}
"""Architectures that are the tower of another one alone, as a trained student is written."""
MATCHES = ("FeatureMatch", "LogitMatch")
"""The objectives that learn from a teacher."""
MEASURES = ("MeasureLoss", "VolumeConsistency")
"""The objectives that learn numbers."""


def distill_args(merged: Mapping[str, Any], places: Places) -> DistillArgs | None:
    """Checks `distill_args` and the teacher in it; None where nobody teaches, or a config takes its base's away."""
    if merged.get("distill_args") is None:
        return None
    values = checking.section(merged, "distill_args", places)
    teacher = values.get("teacher")
    if not isinstance(teacher, dict):
        raise ConfigError(
            f"{places.of('distill_args')}: distill_args needs teacher=dict(type=..., model_name_or_path=...)"
        )
    known: ModelArgs = checking.filled(ModelArgs, {"lora_r": None, **teacher}, "distill_args.teacher", places)
    place = places.of("distill_args", "teacher", "type")
    checking.describe_entry(checking.MODELS, known.type, ("distill_args", "teacher", "type"), places)
    for key, wrong in (("lora_r", known.lora_r is not None), ("heads", bool(known.heads))):
        if wrong:
            raise ConfigError(f"{place}: a teacher does not train: remove distill_args.teacher.{key}")
    if known.type == "medsiglip":
        known = replace(known, part="vision")
    args: DistillArgs = checking.filled(DistillArgs, {**values, "teacher": known}, "distill_args", places)
    return args


def refuse_wrong_parts(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuses `part` and what belongs to it where the type has none, and a checkpoint of another architecture."""
    args = config.model_args
    found = TOWERS.get(checkpoint.model_type or "", checkpoint.model_type)
    if args.type in ("gemma3n-student", "medsiglip") and found not in (None, SEEING[args.type]):
        raise ConfigError(
            f"{config.place('model_args', 'type')}: type='{args.type}' reads a {SEEING[args.type]} checkpoint, and "
            f"{args.model_name_or_path} is a {checkpoint.title} checkpoint: name another type or checkpoint"
        )
    if args.part is not None and args.type not in SEEING:
        raise ConfigError(
            f"{config.place('model_args', 'part')}: part='vision' is possible with type={', '.join(SEEING)}, and the "
            f"type is '{args.type}': remove part"
        )
    if args.train_vision and args.part is None:
        raise ConfigError(
            f"{config.place('model_args', 'train_vision')}: train_vision=True trains the vision tower of a model "
            f"without its language model: set part='vision', or lora_target='vision' for a LoRA in it"
        )
    measures = args.heads.get("measures", {}).get("type")
    if measures is not None and (args.part is None or measures != "RegressionHead" or len(args.heads) > 1):
        raise ConfigError(
            f"{config.place('model_args', 'heads', 'measures')}: a RegressionHead named 'measures' is the one head of "
            f"a model with part='vision': set that, and leave other heads out"
        )
    if args.part is None:
        return
    if args.train_vision and args.lora_r is not None:
        logger.info("train_vision=True trains the whole vision tower, so no LoRA is put into it (lora_r has no effect)")
    if measures is None:
        raise ConfigError(
            f"{config.place('model_args', 'part')}: a model with part='vision' does not speak; say what it gives: "
            f"heads = dict(measures=dict(type='RegressionHead', measures=['EF'], views=['ED', 'ES']))"
        )
    if args.type == "gemma3n-student" and (args.load_in_4bit or args.load_in_8bit):
        raise ConfigError(
            f"{config.place('model_args', 'load_in_4bit' if args.load_in_4bit else 'load_in_8bit')}: the vision tower "
            f"of Gemma 3n has convolutions and no Linear layer, so 4 and 8 bits apply to the language model only, "
            f"which part='vision' does not load: remove it (the tower needs 1.2 GB in fp32, 0.6 GB in bf16)"
        )
    if args.type == "gemma3n-student" and config.training_args.get("fp16"):
        raise ConfigError(
            f"{config.place('training_args', 'fp16')}: the convolutions of Gemma 3n's vision tower overflow fp16: set "
            f"fp16=False (it needs 1.2 GB in fp32), or bf16=True on Ampere and newer cards"
        )


def refuse_wrong_lessons(config: RunConfig) -> None:
    """Refuses objectives whose teacher, head or language model is absent; says where a teacher is asked for nothing."""
    types = {name: options["type"] for name, options in config.objectives.items()}
    args, taught = config.model_args, config.distill_args
    for name, kind in types.items():
        place = f"{config.place('objectives', name)}: objectives.{name} ({kind})"
        if kind in MATCHES and taught is None:
            raise ConfigError(f"{place} needs a teacher: set distill_args = dict(teacher=dict(type=..., ...))")
        if kind == "NextToken" and args.part == "vision":
            raise ConfigError(
                f"{place} learns words, and a model with part='vision' has none: set objectives = "
                f"dict({name}=None, measures=dict(type='MeasureLoss'))"
            )
        if (kind in MEASURES or kind == "FeatureMatch") and args.part is None:
            raise ConfigError(f"{place} is for a model with part='vision': set model_args.part='vision'")
        if kind == "FeatureMatch" and taught is not None and taught.teacher.part is None:
            raise ConfigError(f"{place} needs a teacher that sees: set distill_args.teacher.part='vision'")
        if kind == "LogitMatch" and taught is not None and taught.teacher.part is not None:
            raise ConfigError(f"{place} needs a teacher that speaks: remove distill_args.teacher.part")
    features = [name for name, kind in types.items() if kind == "FeatureMatch"]
    if len(features) > 1:
        raise ConfigError(
            f"{config.place('objectives', features[1])}: objectives.{features[0]} and objectives.{features[1]} are "
            f"both FeatureMatch, and a model's layers are read at one grid: name all layers in one of them, each with "
            f"its share in layer_weights, and remove the other"
        )
    if taught is not None and not set(types.values()) & set(MATCHES):
        raise ConfigError(
            f"{config.place('distill_args')}: nothing is learned from the teacher: add an objective such as "
            f"feature_match=dict(type='FeatureMatch', weight=0.05), or remove distill_args"
        )
