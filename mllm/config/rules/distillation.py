"""Rules for vision parts and for distillation from a teacher."""

from __future__ import annotations

import logging

from mllm.config.schema import RunConfig
from mllm.errors import ConfigError
from mllm.registry import OBJECTIVES

logger = logging.getLogger(__name__)


def refuse_wrong_parts(config: RunConfig) -> None:
    """Raise `ConfigError` for keys of a vision part that contradict each other."""
    args = config.model_args
    if args.train_vision and args.part is None:
        raise ConfigError(
            f"{config.origin('model_args', 'train_vision')}: train_vision=True trains the vision tower of a model "
            f"without its language model: set part='vision', or lora_target='vision' for a LoRA in it"
        )
    measures = args.heads.get("measures", {}).get("type")
    if measures is not None and (args.part is None or measures != "RegressionHead" or len(args.heads) > 1):
        raise ConfigError(
            f"{config.origin('model_args', 'heads', 'measures')}: a RegressionHead named 'measures' must be the only "
            f"head of a model with part='vision': set part='vision', and remove other heads"
        )
    if args.part is None:
        return
    if args.train_vision and args.lora_r is not None:
        logger.info("train_vision=True trains the whole vision tower, so no LoRA is put into it (lora_r has no effect)")
    if measures is None:
        raise ConfigError(
            f"{config.origin('model_args', 'part')}: a model with part='vision' generates no text and needs a head: "
            f"set heads = dict(measures=dict(type='RegressionHead', measures=['EF'], views=['ED', 'ES']))"
        )


def refuse_unsupported_objectives(config: RunConfig) -> None:
    """Raise `ConfigError` for objectives without their teacher, head or language model, and for an unused teacher."""
    args, distill = config.model_args, config.distill_args
    attributes = {name: OBJECTIVES.describe(options["type"]).attributes for name, options in config.objectives.items()}
    for name, options in config.objectives.items():
        output = attributes[name].get("teacher")
        origin = f"{config.origin('objectives', name)}: objectives.{name} ({options['type']})"
        if output is not None and distill is None:
            raise ConfigError(f"{origin} needs a teacher: set distill_args = dict(teacher=dict(type=..., ...))")
        if options["type"] == "NextToken" and args.part == "vision":
            raise ConfigError(
                f"{origin} is for models that generate text, and part='vision' loads no language model: set objectives "
                f"= dict({name}=None, measures=dict(type='MeasureLoss'))"
            )
        if (attributes[name].get("reads") == "measures" or output == "features") and args.part is None:
            raise ConfigError(f"{origin} is for a model with part='vision': set model_args.part='vision'")
        if output == "features" and distill is not None and distill.teacher.part is None:
            raise ConfigError(f"{origin} needs a vision teacher: set distill_args.teacher.part='vision'")
        if output == "logits" and distill is not None and distill.teacher.part is not None:
            raise ConfigError(f"{origin} needs a teacher that generates text: remove distill_args.teacher.part")
    features = [name for name, values in attributes.items() if values.get("teacher") == "features"]
    if len(features) > 1:
        kind = config.objectives[features[1]]["type"]
        raise ConfigError(
            f"{config.origin('objectives', features[1])}: objectives.{features[0]} and objectives.{features[1]} are "
            f"both {kind}, and all layers of a model must be read with the same grid: name all layers in one of them, "
            f"with a weight for each in layer_weights, and remove the other"
        )
    if distill is not None and not any(values.get("teacher") for values in attributes.values()):
        raise ConfigError(
            f"{config.origin('distill_args')}: no objective uses the teacher: add one such as "
            f"feature_match=dict(type='FeatureMatch', weight=0.05), or remove distill_args"
        )
