"""Rules for the parts of a model that train, and for models that start from new weights."""

from __future__ import annotations

from mllm.config.checkpoint import Checkpoint
from mllm.config.schema import RunConfig
from mllm.config.trainable import FULL, LORA, LORA_TOWERS, trained_parts
from mllm.errors import ConfigError
from mllm.family import Family


def refuse_trainable_conflicts(config: RunConfig, checkpoint: Checkpoint, family: Family) -> None:
    """Raise `ConfigError` for parts that cannot train, and for keys that contradict `model_args.trainable`."""
    if config.model_args.trainable != LORA:
        _refuse_absent_towers(config)
        _refuse_contradictions(config)
        _refuse_quantized_towers(config, checkpoint, family)
    _refuse_random_frozen_weights(config)


def _refuse_absent_towers(config: RunConfig) -> None:
    """Raise `ConfigError` for the language model of a vision part. Other towers depend on the checkpoint."""
    args = config.model_args
    if args.part is not None and "language" in args.trainable:
        raise ConfigError(
            f"{config.origin('model_args', 'trainable')}: trainable names the part 'language', which a model with "
            f"part='{args.part}' does not have: remove it"
        )


def _refuse_contradictions(config: RunConfig) -> None:
    """Raise `ConfigError` for `train_vision` and `lora_target` if they say something else than `trainable`."""
    args, origin = config.model_args, config.origin("model_args", "trainable")
    if args.train_vision:
        raise ConfigError(
            f"{config.origin('model_args', 'train_vision')}: train_vision=True is for trainable='lora', and trainable "
            f"({origin}) says what trains: remove train_vision"
        )
    target = trained_parts(args).lora_target
    is_tower = args.lora_target in (*LORA_TOWERS, "all")
    if not config.is_written("model_args", "lora_target"):
        return
    if target is not None and is_tower and args.lora_target != target:
        raise ConfigError(
            f"{config.origin('model_args', 'lora_target')}: lora_target='{args.lora_target}' contradicts trainable "
            f"({origin}), which puts a LoRA into lora_target='{target}': remove lora_target"
        )
    if target is None and not is_tower:
        raise ConfigError(
            f"{config.origin('model_args', 'lora_target')}: lora_target={args.lora_target!r} has no effect, because "
            f"trainable ({origin}) trains no LoRA: remove lora_target, or name a tower with 'lora'"
        )


def _refuse_quantized_towers(config: RunConfig, checkpoint: Checkpoint, family: Family) -> None:
    """Raise `ConfigError` for full training of a tower whose weights are loaded in 4 or 8 bits."""
    args, parts = config.model_args, trained_parts(config.model_args)
    keys = [key for key in ("load_in_4bit", "load_in_8bit") if vars(args)[key]]
    if not keys and "quantization_config" not in checkpoint.keys:
        return
    names = {tower: tower for tower in ("language", "encoder", "vision", "projector", "audio")}
    unquantized = family.keep_unquantized(4 if args.load_in_4bit else 8, names) if keys else ["projector"]
    if quantized := [tower for tower in parts.full if tower not in unquantized]:
        reason = f"{keys[0]}=True ({config.origin('model_args', keys[0])})" if keys else args.model_name_or_path
        fix = f"set {keys[0]}=False" if keys else "use the full-precision checkpoint"
        raise ConfigError(
            f"{config.origin('model_args', 'trainable')}: trainable trains {' and '.join(quantized)} in full, and "
            f"quantized weights cannot train ({reason}): {fix}, or train a LoRA"
        )


def _refuse_random_frozen_weights(config: RunConfig) -> None:
    """Raise `ConfigError` for `from_scratch` with keys that presuppose weights, and for its seed without it."""
    args = config.model_args
    if not args.from_scratch:
        if args.init_seed:
            raise ConfigError(
                f"{config.origin('model_args', 'init_seed')}: init_seed={args.init_seed} has no effect without "
                f"from_scratch=True: set that too, or remove it"
            )
        return
    origin = config.origin("model_args", "from_scratch")
    if args.trainable != FULL:
        raise ConfigError(
            f"{origin}: from_scratch=True starts from random weights, and trainable={args.trainable!r} would leave "
            f"some of them frozen: set trainable='full'"
        )
    for key in ("adapter_path", "load_in_4bit", "load_in_8bit"):
        if vars(args)[key]:
            raise ConfigError(
                f"{origin}: from_scratch=True ignores the weights of the checkpoint, and {key} "
                f"({config.origin('model_args', key)}) needs them: remove one of them"
            )
