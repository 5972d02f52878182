"""Checks of optimizer, schedule and trackers before weights are loaded, with a model of one parameter."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.engine.builder import CHECKPOINTING, tracker_names, training_arguments
from mllm.engine.trackers import try_tracker
from mllm.errors import ConfigError

logger = logging.getLogger(__name__)

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules that ignore `warmup_steps`."""
CALLBACK_KEYS = ("save_total_limit", "early_stopping_patience", "early_stopping_threshold")
"""Keys of `training_args` that callbacks of this program read."""


def check_early(config: RunConfig, hardware: Hardware, updates: int) -> RunConfig:
    """Return the config after its optimizer, schedule and trackers have been built for a single parameter.

    For a run of one update, warmup is turned off in the result, because its only learning rate would be 0.

    Args:
        config: The config.
        hardware: The hardware of the run.
        updates: Number of updates of the whole training.

    Raises:
        ConfigError: One of them cannot be built, or the learning rate is 0 in every update.
    """
    if config.data_args.gen_kwargs.get("scales"):
        raise ConfigError(
            f"{config.origin('data_args', 'gen_kwargs')}: data_args.gen_kwargs.scales is an option of mllm evaluate, "
            "because the model of a run has one image_size: remove it here, and set it there with --cfg-options"
        )
    processes = PartialState().num_processes
    if config.data_args.tokens_per_micro_batch == "auto" and processes > 1:
        raise ConfigError(
            f"{config.origin('data_args', 'tokens_per_micro_batch')}: tokens_per_micro_batch='auto' needs one process, "
            f"and this run has {processes}, which cannot take back an update alone: set it to the number that a run on "
            "one process writes to micro_batches.json"
        )
    if updates == 1 and config.training_args["warmup_steps"]:
        logger.info("the run has one update: warmup_steps is set to 0, because the learning rate would be 0")
        config = config.replaced(**{"training_args.warmup_steps": 0})
    settings = {key: value for key, value in config.training_args.items() if key not in CALLBACK_KEYS}
    for name in CHECKPOINTING:
        settings.pop(name, None)
        settings.pop(f"{name}_kwargs", None)
    _refuse_fsdp_on_cpu(config)
    # The rules have checked the engines. With these arguments, transformers would divide weights while it loads them.
    settings |= {"deepspeed": None, "fsdp": None, "fsdp_config": None}
    folder = Path(config.training_args["output_dir"] or ".")
    arguments = training_arguments(
        settings, hardware, folder, learner=None, evaluates=config.data_args.validation is not None
    )
    _check_trackers(config)
    optimizer = _optimizer(config, arguments)
    _check_schedule(config, arguments, optimizer, updates)
    return config


def _refuse_fsdp_on_cpu(config: RunConfig) -> None:
    """Raise `ConfigError` for FSDP on a CPU, where accelerate ignores it."""
    if config.training_args["fsdp"] and PartialState().distributed_type == DistributedType.MULTI_CPU:
        raise ConfigError(
            f"{config.origin('training_args', 'fsdp')}: fsdp needs GPUs, because accelerate ignores it on a CPU: "
            "remove it, and the processes train with DDP"
        )


def _check_trackers(config: RunConfig) -> None:
    """Raise `ConfigError` for a tracker whose package is not installed, or that has no login or store."""
    origin, names = config.origin("training_args", "report_to"), tracker_names(config)
    for name in names:
        if name not in get_available_reporting_integrations():
            raise ConfigError(
                f"{origin}: report_to={names} cannot be used: the package of {name} is not installed: pip install "
                f"{name}"
            )
        try_tracker(name, origin)


def _optimizer(config: RunConfig, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Return the optimizer of the config for a single parameter. Raise `ConfigError` if it cannot be built."""
    parameter, name = nn.Parameter(torch.zeros(1)), config.training_args["optim"]
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer: torch.optim.Optimizer = kind([parameter], **options)
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise ConfigError(
            f"{config.origin('training_args', 'optim')}: optim='{name}' cannot be used: {error}"
        ) from error
    return optimizer


def _check_schedule(config: RunConfig, arguments: TrainingArguments, optimizer: Any, updates: int) -> None:
    """Raise `ConfigError` for a schedule that cannot be built or is always 0; warn about a long warmup."""
    name = config.training_args["lr_scheduler_type"]
    origin = config.origin("training_args", "lr_scheduler_type")
    warmup = arguments.get_warmup_steps(updates)
    options: Any = arguments.lr_scheduler_kwargs or {}  # a dict, because TrainingArguments parses text
    try:
        schedule = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=warmup,
            num_training_steps=updates,
            scheduler_specific_kwargs=options,
        )
        rates = schedule.lr_lambdas[0] if isinstance(schedule, LambdaLR) else None
        is_positive = rates is None or any(rates(step) > 0 for step in range(updates))
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{origin}: lr_scheduler_type='{name}' cannot be used: {error}; set its options in lr_scheduler_kwargs"
        ) from error
    if not is_positive:
        raise ConfigError(
            f"{origin}: the learning rate is 0 in all {updates} updates of lr_scheduler_type='{name}' with {warmup} "
            f"updates of warmup, so nothing would be learned: lower warmup_steps, or make the run longer"
        )
    if 2 * warmup > updates and name not in WITHOUT_WARMUP and not config.tiny:
        logger.warning(
            "warmup takes %d of %d updates, so the learning rate is low for more than half of the run: lower "
            "training_args.warmup_steps",
            *(min(warmup, updates), updates),
        )
