"""Rules for vision parts and for distillation from a teacher."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mllm.config import checking
from mllm.config.origins import Places
from mllm.config.schema import DistillArgs, RunConfig
from mllm.errors import ConfigError
from mllm.family import FAMILIES

logger = logging.getLogger(__name__)

MATCHES = ("FeatureMatch", "LogitMatch")
"""The objectives that learn from a teacher."""
MEASURES = ("MeasureLoss", "VolumeConsistency")
"""The objectives that learn numbers."""


def distill_args(merged: Mapping[str, Any], places: Places) -> DistillArgs | None:
    """Return the checked `distill_args` with its teacher; None without a teacher, or if a config removes its base's."""
    if merged.get("distill_args") is None:
        return None
    values = checking.section(merged, "distill_args", places)
    teacher = values.get("teacher")
    if not isinstance(teacher, dict):
        raise ConfigError(
            f"{places.of('distill_args')}: distill_args needs teacher=dict(type=..., model_name_or_path=...)"
        )
    known = checking.typed_args({"lora_r": None, **teacher}, "distill_args.teacher", places)
    place = places.of("distill_args", "teacher", "type")
    for key, wrong in (("lora_r", known.lora_r is not None), ("heads", bool(known.heads))):
        if wrong:
            raise ConfigError(f"{place}: a teacher does not train: remove distill_args.teacher.{key}")
    known = replace(known, part=FAMILIES.find(known.type).defaults.get("part", known.part))
    args: DistillArgs = checking.filled(DistillArgs, {**values, "teacher": known}, "distill_args", places)
    return args


def refuse_wrong_parts(config: RunConfig) -> None:
    """Raise `ConfigError` for keys of a vision part that contradict each other."""
    args = config.model_args
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


def refuse_wrong_lessons(config: RunConfig) -> None:
    """Raise `ConfigError` for objectives without their teacher, head or language model, and for an unused teacher."""
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
