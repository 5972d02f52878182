"""Rules for differential privacy: settings that would break or change its guarantee."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mllm.config.schema import PrivacyArgs, RunConfig
from mllm.config.trainable import trained_parts
from mllm.errors import ConfigError
from mllm.registry import BOX_FORMATS, HEADS


def refuse_private_conflicts(config: RunConfig) -> None:
    """Raise `ConfigError` for settings that conflict with `privacy_args`, except for a delta that is too large."""
    if config.privacy_args is None:
        return
    refuse_contradictions(config, config.privacy_args)
    refuse_conflicting_arguments(config)
    refuse_selection_by_private_loss(config, config.privacy_args)
    refuse_nonlinear_parts(config)
    refuse_dependent_samples(config)
    refuse_scale_from_private_data(config)


def refuse_large_delta(config: RunConfig, units: int) -> None:
    """Raise `ConfigError` for a delta of 1 / N or more with N units, which would permit the release of a whole unit."""
    privacy = config.privacy_args
    if privacy is not None and privacy.target_delta * units >= 1:
        raise ConfigError(
            f"{config.origin('privacy_args', 'target_delta')}: target_delta={privacy.target_delta:g} is too large for "
            f"N={units} {privacy.unit}s, because it must be below 1/N = {1 / units:.3g}: set it to "
            f"{_round_below(0.1 / units):g}, for example"
        )


def refuse_contradictions(config: RunConfig, privacy: PrivacyArgs) -> None:
    """Raise `ConfigError` for keys of `privacy_args` that contradict each other."""
    if (privacy.target_epsilon is None) == (privacy.noise_multiplier is None):
        both = privacy.target_epsilon is not None
        raise ConfigError(
            f"{config.origin('privacy_args', 'noise_multiplier' if both else 'target_epsilon')}: privacy_args needs "
            f"either target_epsilon, from which the noise follows, or noise_multiplier, and has "
            f"{'both: remove one' if both else 'neither: set target_epsilon=3.0, for example'}"
        )
    if privacy.max_records_per_patient is not None and privacy.unit == "sample":
        raise ConfigError(
            f"{config.origin('privacy_args', 'max_records_per_patient')}: max_records_per_patient="
            f"{privacy.max_records_per_patient} has no effect with unit='sample': set unit='patient', or remove it"
        )
    if privacy.secure_mode and privacy.test_noise_seed is not None:
        raise ConfigError(
            f"{config.origin('privacy_args', 'test_noise_seed')}: test_noise_seed makes the noise reproducible, and "
            f"secure_mode=True makes it unpredictable: remove one of them"
        )


def refuse_conflicting_arguments(config: RunConfig) -> None:
    """Raise `ConfigError` for training arguments that contradict the sampling, clipping and noise of DP-SGD."""
    args = config.training_args
    if args["fp16"]:
        raise ConfigError(
            f"{config.origin('training_args', 'fp16')}: fp16=True cannot be used with privacy_args, because a gradient "
            f"that overflows in half precision has no norm to clip: set bf16=True, or train in fp32"
        )
    accumulation = args["gradient_accumulation_steps"]
    if accumulation > 1:
        size = args["per_device_train_batch_size"] * accumulation
        raise ConfigError(
            f"{config.origin('training_args', 'gradient_accumulation_steps')}: gradient_accumulation_steps="
            f"{accumulation} cannot be used with privacy_args, because every sampled batch is one update: set it to 1, "
            f"per_device_train_batch_size to the {size} samples of an update, and privacy_args.physical_batch_size to "
            f"what fits in memory"
        )
    if args["max_grad_norm"]:
        raise ConfigError(
            f"{config.origin('training_args', 'max_grad_norm')}: max_grad_norm={args['max_grad_norm']:g} cannot be "
            f"used with privacy_args, because the gradient of every unit is already clipped to privacy_args.clip_norm: "
            f"set max_grad_norm=0"
        )
    for key in ("fsdp", "deepspeed"):
        if args[key]:
            raise ConfigError(
                f"{config.origin('training_args', key)}: {key} cannot be used with privacy_args, because the gradient "
                f"of a unit is clipped as a whole, and each process would hold only a part of it: remove it"
            )
    if args["save_strategy"] == "no":
        raise ConfigError(
            f"{config.origin('training_args', 'save_strategy')}: save_strategy='no' cannot be used with privacy_args, "
            f"because an interrupted run has spent privacy and could not be resumed: set it to 'steps'"
        )


def refuse_selection_by_private_loss(config: RunConfig, privacy: PrivacyArgs) -> None:
    """Raise `ConfigError` for a selection of checkpoints or learning rates by the loss on private data.

    Such a selection is a query of private data that the accountant does not count.
    """
    args = config.training_args
    choices = {
        "load_best_model_at_end": args["load_best_model_at_end"],
        "early_stopping_patience": args["early_stopping_patience"] is not None,
        "save_strategy": args["save_strategy"] == "best",
        "lr_scheduler_type": args["lr_scheduler_type"] == "reduce_lr_on_plateau",
    }
    for key, chosen in choices.items():
        if chosen and not privacy.public_validation:
            raise ConfigError(
                f"{config.origin('training_args', key)}: {key}={args[key]!r} selects by the validation loss, which is "
                f"a query of private data that the accountant does not count: remove it, or set "
                f"privacy_args.public_validation=True if the validation split is public"
            )
    origin = config.origin("privacy_args", "checkpoint_below")
    if privacy.checkpoint_below and not privacy.public_validation:
        raise ConfigError(
            f"{origin}: checkpoint_below selects by the validation loss, which is a query of private data that the "
            f"accountant does not count: remove it, or set privacy_args.public_validation=True if the validation split "
            f"is public"
        )
    evaluates = config.data_args.validation is not None and args["eval_strategy"] != "no"
    if privacy.checkpoint_below and not evaluates:
        raise ConfigError(
            f"{origin}: checkpoint_below needs a validation loss, and there is none: set data_args.validation, and "
            f"training_args.eval_strategy to 'steps' or 'epoch'"
        )


def refuse_nonlinear_parts(config: RunConfig) -> None:
    """Raise `ConfigError` for trainable parts without per-sample gradients: all but LoRA on Linear and linear heads."""
    args = config.model_args
    only = "but with privacy_args only LoRA on Linear layers and linear heads can be trained"
    for name, options in args.heads.items():
        nonlinear = HEADS.describe(options["type"]).attributes.get("nonlinear")
        if nonlinear is not None:
            raise ConfigError(
                f"{config.origin('model_args', 'heads', name)}: the head '{name}' ({options['type']}) cannot be "
                f"trained: {nonlinear}, {only}: remove it"
            )
    if args.box_format is not None and BOX_FORMATS.describe(args.box_format["type"]).attributes.get("adds_tokens"):
        raise ConfigError(
            f"{config.origin('model_args', 'box_format')}: box_format '{args.box_format['type']}' adds tokens whose "
            f"embeddings train, {only}: use dict(type='normalized_text')"
        )
    if args.fuse_vision_layers:
        raise ConfigError(
            f"{config.origin('model_args', 'fuse_vision_layers')}: fuse_vision_layers=True trains the weights of a "
            f"mixture of layers, {only}: set it to False"
        )
    if args.train_vision:
        raise ConfigError(
            f"{config.origin('model_args', 'train_vision')}: train_vision=True trains embeddings and convolutions, "
            f"{only}: set it to False, and lora_r to a rank"
        )
    if full := sorted(trained_parts(args).full.keys() - {"projector"}):
        raise ConfigError(
            f"{config.origin('model_args', 'trainable')}: trainable={args.trainable!r} trains norms and embeddings of "
            f"the part '{full[0]}', {only}: use 'lora' for it"
        )
    if config.distill_args is not None:
        raise ConfigError(
            f"{config.origin('distill_args')}: distill_args cannot be used with privacy_args: its projectors train on "
            f"feature maps, {only}: remove it, or distill on public data without privacy_args"
        )
    if args.use_dora:
        raise ConfigError(
            f"{config.origin('model_args', 'use_dora')}: use_dora=True trains magnitudes of weights, {only}: set it to "
            f"False"
        )


def refuse_dependent_samples(config: RunConfig) -> None:
    """Raise `ConfigError` if a sample depends on others of its batch, or is drawn more than once for it."""
    if config.model_args.load_in_8bit:
        raise ConfigError(
            f"{config.origin('model_args', 'load_in_8bit')}: load_in_8bit=True cannot be used with privacy_args, "
            f"because LLM.int8 selects outlier columns from all samples of a batch, so samples influence each other: "
            f"set load_in_4bit=True, or neither"
        )
    if any(options["type"] == "MixedDataset" for options in datasets_in(config.data_args.train)):
        raise ConfigError(
            f"{config.origin('data_args', 'train')}: MixedDataset draws rows with replacement, so the sampling rate of "
            f"a row would differ from the rate of the accountant: use ConcatDataset"
        )


def refuse_scale_from_private_data(config: RunConfig) -> None:
    """Raise `ConfigError` for a head that takes its scale from the training split, which is not accounted for."""
    for name, options in config.model_args.heads.items():
        if options["type"] == "RegressionHead" and options.get("scale") is None:
            measures = options.get("measures", ("EF", "EDV", "ESV"))
            raise ConfigError(
                f"{config.origin('model_args', 'heads', name)}: a RegressionHead takes mean and standard deviation of "
                f"its measures from the training split, which is a query of private data that the accountant does not "
                f"count: set published values, such as scale=dict({measures[0]}=(55.0, 12.0)"
                f"{', ...' if len(measures) > 1 else ''})"
            )


def datasets_in(options: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the options of a dataset and of the datasets in it."""
    if isinstance(options, Mapping):
        if "type" in options:
            yield options
        for value in options.values():
            yield from datasets_in(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from datasets_in(value)


def _round_below(value: float) -> float:
    """Return `value` rounded down to one digit."""
    mantissa, _, exponent = f"{value:e}".partition("e")
    return float(f"{mantissa[0]}e{exponent}")
