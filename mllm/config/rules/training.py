"""Rules for `training_args`: updates, unused arguments, gradient checkpointing."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
import os

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig, StoppingArgs
from mllm.config.training_args import training_fields
from mllm.config.training_support import (
    FALSE_VALUES,
    LOCAL_TRACKERS,
    REFUSED_OPTIMIZERS,
    TRACKERS,
    UPLOADING_VARIABLES,
    is_default,
    refusal,
)
from mllm.errors import ConfigError, hint

logger = logging.getLogger(__name__)


def refuse_no_updates(config: RunConfig) -> None:
    """Raise `ConfigError` for settings with which no weight would change."""
    args = config.training_args
    steps = args["max_steps"]
    if steps == 0 or steps < -1:
        raise ConfigError(
            f"{config.origin('training_args', 'max_steps')}: max_steps={steps} trains nothing: set it to at least 1, "
            f"or to -1 for num_train_epochs={args['num_train_epochs']}"
        )
    if args["learning_rate"] == 0:
        origin = config.origin("training_args", "learning_rate")
        raise ConfigError(f"{origin}: learning_rate=0 trains nothing: set it above 0, to 1e-4 for example")
    epochs = args["num_train_epochs"]
    if steps < 0 and not 0 < epochs < math.inf:
        fault = "trains nothing" if epochs <= 0 else "is no length of a run"
        raise ConfigError(
            f"{config.origin('training_args', 'num_train_epochs')}: num_train_epochs={epochs} {fault}: set it above 0, "
            "or max_steps to at least 1"
        )


def refuse_auto_micro_batches(config: RunConfig) -> None:
    """Raise `ConfigError` for `tokens_per_micro_batch='auto'` where a failed pass cannot be taken back."""
    if config.data_args.tokens_per_micro_batch != "auto":
        return
    for name, section, reason in (
        ("privacy_args", config.privacy_args, "clips the gradients of physical_batch_size samples at a time"),
        ("training_args.deepspeed", config.training_args["deepspeed"], "keeps the gradients of passes that fail"),
        ("training_args.fsdp", config.training_args["fsdp"], "exchanges weights and gradients in passes that fail"),
    ):
        if section:
            raise ConfigError(
                f"{config.origin('data_args', 'tokens_per_micro_batch')}: tokens_per_micro_batch='auto' is not "
                f"possible with {name}, which {reason}: set it to a number of tokens or remove it"
            )


def refuse_unsupported_arguments(config: RunConfig) -> None:
    """Raise `ConfigError` for arguments of `transformers.Trainer` that have no effect here or are not supported."""
    stopping_keys = {item.name for item in dataclasses.fields(StoppingArgs)}
    for key, field in training_fields().items():
        value = config.training_args[key]
        reason = None if key in stopping_keys or is_default(value, field.default) else refusal(key)
        if reason is not None:
            raise ConfigError(
                f"{config.origin('training_args', key)}: {key}={value!r} is not supported, because {reason}: remove it"
            )
    args = config.training_args
    if args["optim"] in REFUSED_OPTIMIZERS:
        raise ConfigError(
            f"{config.origin('training_args', 'optim')}: optim={args['optim']!r} is not supported, because "
            f"{REFUSED_OPTIMIZERS[args['optim']]}: use 'adamw_torch_fused' or 'adamw_8bit'"
        )
    if args["save_strategy"] == "best":
        raise ConfigError(
            f"{config.origin('training_args', 'save_strategy')}: save_strategy='best' is not supported, because "
            f"--resume needs the newest checkpoint: set it to 'epoch' or 'steps', and load_best_model_at_end=True"
        )


def refuse_unsuitable_trackers(config: RunConfig) -> None:
    """Raise `ConfigError` for trackers that upload more than figures and settings, or anything of a private run."""
    value, origin = config.training_args["report_to"], config.origin("training_args", "report_to")
    if value is None:
        raise ConfigError(f"{origin}: report_to=None is not supported: write report_to=[] for no tracker")
    names = [value] if isinstance(value, str) else list(value)
    for name in names:
        if name == "none":
            continue
        if name not in TRACKERS:
            raise ConfigError(f"{origin}: report_to names {name!r}, which is not supported{hint(str(name), TRACKERS)}")
        if config.privacy_args is not None and name not in LOCAL_TRACKERS:
            raise ConfigError(
                f"{origin}: report_to={name!r} cannot be used with privacy_args, because it would upload figures and "
                f"paths of a private run: use ['tensorboard'], which writes to the run folder, or []"
            )
        for variable in UPLOADING_VARIABLES.get(name, ()):
            if os.environ.get(variable, "").lower() not in FALSE_VALUES:
                raise ConfigError(
                    f"{origin}: report_to={name!r} would upload more than figures, because the environment variable "
                    f"{variable} is set: unset it, and upload the result with `mllm push`"
                )


def refuse_unknown_metric(config: RunConfig) -> None:
    """Raise `ConfigError` for a `metric_for_best_model` that is not computed, and for `greater_is_better`."""
    name, origin = (
        config.training_args["metric_for_best_model"],
        config.origin("training_args", "metric_for_best_model"),
    )
    measured = ["loss", *config.objectives]
    if name is not None and name.removeprefix("eval_") not in measured:
        raise ConfigError(
            f"{origin}: metric_for_best_model={name!r} is not measured on the validation split; choose from "
            f"{', '.join(measured)} (data_args.compute_metric is computed on the test split, after the training)"
        )
    if config.training_args["greater_is_better"]:
        raise ConfigError(
            f"{config.origin('training_args', 'greater_is_better')}: greater_is_better=True would select the worst "
            f"checkpoint, because the validation split is measured by losses: remove it"
        )


def refuse_best_without_measurement(config: RunConfig) -> None:
    """Raise `ConfigError` for `load_best_model_at_end` without validation losses or checkpoints to choose from."""
    if not config.training_args["load_best_model_at_end"] or config.privacy_args is not None:
        return  # rules of privacy refuse it
    never = [name for name in ("eval_strategy", "save_strategy") if config.training_args[name] == "no"]
    if config.data_args.validation is None:
        never.insert(0, "data_args.validation")
    if never:
        raise ConfigError(
            f"{config.origin('training_args', 'load_best_model_at_end')}: load_best_model_at_end=True would load "
            f"nothing without {' and '.join(never)}: set data_args.validation, and eval_strategy and save_strategy to "
            "'epoch' or 'steps'"
        )


def refuse_liger(config: RunConfig, hardware: Hardware) -> None:
    """Raise `ConfigError` for kernels of Liger on a CPU, for another model than one of text, or without the package."""
    if not config.training_args["use_liger_kernel"]:
        return
    origin = config.origin("training_args", "use_liger_kernel")
    if hardware.device == "cpu":
        raise ConfigError(
            f"{origin}: use_liger_kernel=True needs a GPU, for which its kernels are written in Triton: remove it"
        )
    if config.model_args.part is not None:
        raise ConfigError(
            f"{origin}: use_liger_kernel=True is about language models, and type='{config.model_args.type}' has none: "
            "remove it"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError(f"{origin}: use_liger_kernel=True needs the package liger-kernel: pip install -e '.[liger]'")


def adapt_checkpointing(config: RunConfig) -> RunConfig:
    """Make gradient checkpointing non-reentrant; the reentrant kind loses gradients if inputs require none."""
    for name in ("gradient_checkpointing", "activation_checkpointing"):  # transformers is renaming it
        options = config.training_args.get(f"{name}_kwargs") or {}
        if config.training_args.get(name) and options.get("use_reentrant") is not False:
            logger.info("gradient checkpointing: use_reentrant is set to False")
            config = config.replaced(**{f"training_args.{name}_kwargs": {**options, "use_reentrant": False}})
    return config
