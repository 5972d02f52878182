"""Rules of types `shikra` and `perceptionGPT` for checkpoints and frozen parts."""

from __future__ import annotations

from mllm.config.checkpoint import Checkpoint
from mllm.config.schema import RunConfig
from mllm.config.trainable import LORA, trained_parts
from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.models.shikra.options import ShikraArgs

CONVERT = "python mllm/pipeline/convert.py --model {} --out FOLDER"


def refuse_gemma(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for a Gemma checkpoint, even if only its name is known."""
    args = config.model_args
    if checkpoint.is_gemma:
        raise ConfigError(
            f"{config.origin('model_args', 'type')}: type='{args.type}' cannot read {args.model_name_or_path}: "
            f"it is a {checkpoint.title} checkpoint; use type='{FAMILIES.for_architecture(checkpoint.model_type).type}'"
        )


def refuse_wrong_llava(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for a checkpoint that is not a LLaVA and cannot be composed to one."""
    args, model_type = _options(config), checkpoint.model_type
    if model_type is None:
        return
    name = args.model_name_or_path
    origin = config.origin("model_args", "model_name_or_path")
    if "mm_vision_tower" in checkpoint.keys or model_type == "shikra":
        raise ConfigError(
            f"{origin}: {name} is a checkpoint in the layout of the original LLaVA or Shikra: convert it with "
            f"{CONVERT.format(name)} and set model_name_or_path to that folder"
        )
    if model_type == "llama" and args.vision_tower is None:
        raise ConfigError(
            f"{origin}: {name} is a language model without a vision tower: set model_args.vision_tower to a CLIP "
            f"checkpoint such as openai/clip-vit-large-patch14"
        )
    if model_type == "llava" and args.vision_tower is not None:
        raise ConfigError(
            f"{config.origin('model_args', 'vision_tower')}: {name} is a LLaVA and has a vision tower: remove "
            f"vision_tower, or set model_name_or_path to a language model"
        )
    if model_type not in ("llama", "llava"):
        raise ConfigError(
            f"{origin}: type='{args.type}' reads a LLaVA, or a LLaMA with a CLIP as vision_tower, but {name} is a "
            f"{checkpoint.title} checkpoint: use type='{FAMILIES.for_architecture(model_type).type}'"
        )


def refuse_freezing_conflicts(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` if the keys that freeze parts contradict each other or leave nothing to train."""
    args = _options(config)
    _refuse_freezing_with_trainable(config, args)
    has_new_parameters = bool(args.heads) or (
        args.box_format is not None and args.box_format["type"] == "location_tokens"
    )
    if args.tune_mm_mlp_adapter and args.freeze_mm_mlp_adapter:
        raise ConfigError(
            f"{config.origin('model_args', 'tune_mm_mlp_adapter')}: tune_mm_mlp_adapter=True and "
            f"freeze_mm_mlp_adapter=True ({config.origin('model_args', 'freeze_mm_mlp_adapter')}) exclude each other: "
            f"set one of them to False"
        )
    if args.tune_mm_mlp_adapter and has_new_parameters:
        raise ConfigError(
            f"{config.origin('model_args', 'tune_mm_mlp_adapter')}: tune_mm_mlp_adapter=True trains only the "
            f"projector, but heads and added tokens must be trained too: use freeze_backbone=True"
        )
    if args.freeze_backbone and args.freeze_mm_mlp_adapter and not has_new_parameters:
        raise ConfigError(
            f"{config.origin('model_args', 'freeze_backbone')}: freeze_backbone=True and freeze_mm_mlp_adapter=True "
            f"({config.origin('model_args', 'freeze_mm_mlp_adapter')}) leave nothing to train: set one of them to False"
        )
    if args.freeze_mm_mlp_adapter and args.vision_tower is not None and args.pretrain_mm_mlp_adapter is None:
        raise ConfigError(
            f"{config.origin('model_args', 'freeze_mm_mlp_adapter')}: freeze_mm_mlp_adapter=True would freeze a "
            f"new projector with random weights: set pretrain_mm_mlp_adapter to a trained one, or "
            f"freeze_mm_mlp_adapter=False"
        )
    without_lora = args.freeze_backbone or args.tune_mm_mlp_adapter
    if without_lora and args.adapter_path is not None and not args.merge_lora:
        key = "freeze_backbone" if args.freeze_backbone else "tune_mm_mlp_adapter"
        raise ConfigError(
            f"{config.origin('model_args', key)}: {key}=True trains no LoRA, but adapter_path is set: set "
            f"merge_lora=True to merge it into the weights first, or {key}=False"
        )


def _refuse_freezing_with_trainable(config: RunConfig, args: ShikraArgs) -> None:
    """Raise `ConfigError` if `trainable` names the trained parts and the keys that freeze parts are set, too."""
    if args.trainable == LORA:
        return
    for key in ("freeze_backbone", "tune_mm_mlp_adapter", "freeze_mm_mlp_adapter"):
        if vars(args)[key]:
            raise ConfigError(
                f"{config.origin('model_args', key)}: {key}=True is for trainable='lora', and trainable "
                f"({config.origin('model_args', 'trainable')}) says what trains: remove {key}"
            )
    if (
        args.vision_tower is not None
        and args.pretrain_mm_mlp_adapter is None
        and "projector" not in trained_parts(args).full
    ):
        raise ConfigError(
            f"{config.origin('model_args', 'trainable')}: trainable would freeze a new projector with random weights: "
            f"add 'projector': 'full', or set pretrain_mm_mlp_adapter to a trained one"
        )


def _options(config: RunConfig) -> ShikraArgs:
    args = config.model_args
    assert isinstance(args, ShikraArgs)
    return args
