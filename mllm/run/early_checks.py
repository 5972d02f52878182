"""Checks of optimizer, schedule, engine and trackers before weights are loaded, with a model of one parameter."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, DynamoBackend
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.engine.builder import CHECKPOINTING, tracker_names, training_arguments
from mllm.engine.trackers import try_tracker
from mllm.errors import ConfigError, hint
from mllm.objectives.base import ends_of
from mllm.private_messages import PublicText

logger = logging.getLogger(__name__)

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules that ignore `warmup_steps`."""
WITHOUT_OPTIONS = ("constant", "constant_with_warmup")
"""Schedules that ignore `lr_scheduler_kwargs`."""
CHECKED_RATES = 100_000
"""Maximum number of updates, evenly spaced, whose learning rates are computed."""
OF_LAYERS = ("every_n_layers", "offload")
"""Options of checkpointing that transformers reads; the others are those of PyTorch."""
CALLBACK_KEYS = ("save_total_limit", "early_stopping_patience", "early_stopping_threshold")
"""Keys of `training_args` that callbacks of this program read."""


def check_early(config: RunConfig, hardware: Hardware, updates: int, epochs: float = 1.0) -> RunConfig:
    """Return the config after its optimizer, schedule and trackers have been built for a single parameter.

    For a run of one update, warmup is turned off in the result, because its only learning rate would be 0.

    Args:
        config: The config.
        hardware: The hardware of the run.
        updates: Number of updates of the whole training.
        epochs: Number of epochs of the whole training.

    Raises:
        ConfigError: One of them cannot be built, the learning rate is 0 in every update, or the best checkpoint would
            be chosen without a validation.
    """
    if config.data_args.gen_kwargs.get("scales"):
        raise ConfigError(
            f"{config.origin('data_args', 'gen_kwargs')}: data_args.gen_kwargs.scales is an option of mllm evaluate, "
            "because the model of a run has one image_size: remove it here, and set it there with --cfg-options"
        )
    _check_weights(config)
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
    _refuse_engines_without_processes(config)
    # The rules have checked the engines. With these arguments, transformers would divide weights while it loads them.
    settings |= {"deepspeed": None, "fsdp": None, "fsdp_config": None}
    folder = Path(config.training_args["output_dir"] or ".")
    arguments = training_arguments(
        settings, hardware, folder, learner=None, evaluates=config.data_args.validation is not None
    )
    _check_trackers(config)
    _check_checkpointing(config)
    _check_compiler(config)
    optimizer = _optimizer(config, arguments)
    _check_schedule(config, arguments, optimizer, updates)
    _check_validations(config, arguments, updates, epochs)
    return config


def _check_weights(config: RunConfig) -> None:
    """Raise `ConfigError` for an objective with an impossible weight."""
    for name, options in config.objectives.items():
        if isinstance(options.get("weight"), (int, float, dict)):
            try:
                ends_of(options["weight"])
            except ConfigError as error:
                raise ConfigError(f"{config.origin('objectives', name, 'weight')}: {error}") from None


def _refuse_engines_without_processes(config: RunConfig) -> None:
    """Raise `ConfigError` for FSDP on one process or on CPUs, and for DeepSpeed without a launcher.

    Other commands read such a config on one process: they check its data, or evaluate its adapter.
    """
    origin, launch = config.origin("training_args", "fsdp"), "mllm launch --nproc_per_node=GPUS train CONFIG"
    if config.training_args["fsdp"] and PartialState().num_processes < 2:
        raise ConfigError(
            f"{origin}: fsdp divides the weights among several processes, and this run has one: start it with "
            f"{launch}, or remove fsdp"
        )
    if config.training_args["fsdp"] and PartialState().distributed_type == DistributedType.MULTI_CPU:
        raise ConfigError(
            f"{origin}: fsdp needs GPUs, because accelerate ignores it on a CPU: remove it, and the processes train "
            "with DDP"
        )
    if config.training_args["deepspeed"] and "RANK" not in os.environ:  # DeepSpeed would look for MPI
        raise ConfigError(
            f"{config.origin('training_args', 'deepspeed')}: deepspeed needs a launcher, also for one process: start "
            f"the run with {launch}, or remove deepspeed"
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


def _check_checkpointing(config: RunConfig) -> None:
    """Raise `ConfigError` for an unknown option of checkpointing, which PyTorch would pass on to the layers."""
    own = inspect.signature(checkpoint).parameters.values()
    known = [*OF_LAYERS, *(item.name for item in own if item.kind is inspect.Parameter.KEYWORD_ONLY)]
    for name in CHECKPOINTING:
        key = f"{name}_kwargs"
        for option in config.training_args.get(key) or {}:
            if option not in known:
                origin = config.origin("training_args", key)
                raise ConfigError(f"{origin}: unknown option '{option}' in {key}{hint(str(option), known)}")


def _check_compiler(config: RunConfig) -> None:
    """Raise `ConfigError` for a backend or a mode that `torch.compile` does not know."""
    backend, mode = config.training_args["torch_compile_backend"], config.training_args["torch_compile_mode"]
    known = [item.value.lower() for item in DynamoBackend]
    if backend is not None and backend.lower() not in known:
        origin = config.origin("training_args", "torch_compile_backend")
        raise ConfigError(f"{origin}: torch_compile_backend does not know {backend!r}{hint(backend, known)}")
    if mode is not None:
        from torch._inductor import list_mode_options  # here, because it takes seconds to import

        modes = list(list_mode_options())
        if mode not in modes:
            origin = config.origin("training_args", "torch_compile_mode")
            raise ConfigError(f"{origin}: torch_compile_mode does not know {mode!r}{hint(mode, modes)}")


def _optimizer(config: RunConfig, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Return the optimizer of the config for a single parameter.

    Raises:
        ConfigError: It cannot be built, or ignores an option of `optim_args`.
    """
    parameter, name = nn.Parameter(torch.zeros(1)), config.training_args["optim"]
    origin = config.origin("training_args", "optim")
    written = arguments.optim_args
    given = [option for option in (written or "").replace(" ", "").split(",") if option]
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer: torch.optim.Optimizer = kind([parameter], **options)
        for option in given:
            arguments.optim_args = ",".join(other for other in given if other != option)
            if Trainer.get_optimizer_cls_and_kwargs(arguments)[1] == options:
                raise ConfigError(
                    f"{config.origin('training_args', 'optim_args')}: optim='{name}' ignores optim_args='{option}', "
                    "or has that value already: remove it"
                )
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise ConfigError(f"{origin}: optim='{name}' cannot be used: {error}") from error
    finally:
        arguments.optim_args = written
    return optimizer


def _check_schedule(config: RunConfig, arguments: TrainingArguments, optimizer: Any, updates: int) -> None:
    """Raise `ConfigError` for a schedule that cannot be built, or whose rates are impossible; warn of a long warmup."""
    name = config.training_args["lr_scheduler_type"]
    warmup = arguments.get_warmup_steps(updates)
    options: Any = arguments.lr_scheduler_kwargs or {}  # a dict, because TrainingArguments parses text
    origin = config.origin("training_args", "lr_scheduler_kwargs" if options else "lr_scheduler_type")
    if options and name in WITHOUT_OPTIONS:
        raise ConfigError(f"{origin}: lr_scheduler_type='{name}' ignores lr_scheduler_kwargs={options}: remove it")
    try:
        schedule = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=warmup,
            num_training_steps=updates,
            scheduler_specific_kwargs=options,
        )
        largest = _check_rates(schedule.lr_lambdas[0], updates) if isinstance(schedule, LambdaLR) else 1.0
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{origin}: lr_scheduler_type='{name}' cannot be used: {error}; set its options in lr_scheduler_kwargs"
        ) from error
    if largest == 0:
        raise ConfigError(
            f"{origin}: the learning rate is 0 in all {updates} updates of lr_scheduler_type='{name}' with {warmup} "
            f"updates of warmup, so nothing would be learned: lower warmup_steps, or make the run longer"
        )
    if warmup and name in WITHOUT_WARMUP:
        logger.info("lr_scheduler_type='%s' ignores warmup_steps: its learning rate begins at its full value", name)
    elif 2 * warmup > updates and not config.tiny:
        logger.warning(
            "warmup takes %d of %d updates, so the learning rate is low for more than half of the run: lower "
            "training_args.warmup_steps",
            *(min(warmup, updates), updates),
        )


def _check_rates(rate: Callable[[int], float], updates: int) -> float:
    """Return the largest of the factors by which a schedule multiplies the learning rate.

    Raises:
        ValueError: A factor is negative, above 1 or not a number.
    """
    largest = 0.0
    for step in {*range(0, updates, max(1, updates // CHECKED_RATES)), max(0, updates - 1)}:
        factor = rate(step)
        if not 0 <= factor <= 1 + 1e-6:
            fault = "the weights would move away from the data" if factor < 0 else "learning_rate must be the largest"
            raise ValueError(f"its learning rate is {factor:g} times learning_rate in update {step + 1}: {fault}")
        largest = max(largest, factor)
    return largest


def _check_validations(config: RunConfig, arguments: TrainingArguments, updates: int, epochs: float) -> None:
    """Log a warning about a run without a validation, or with too few for early stopping.

    Raises:
        ConfigError: There is no validation from which `load_best_model_at_end` could choose.
    """
    patience, strategy = config.training_args["early_stopping_patience"], arguments.eval_strategy
    if config.data_args.validation is None or strategy == "no" or config.tiny:
        return
    interval = 1.0 if strategy == "epoch" else arguments.eval_steps or 1
    interval = interval if interval >= 1 else math.ceil(updates * interval)
    end, first = epochs if strategy == "epoch" else updates, arguments.eval_delay
    # `DefaultFlowCallback` of transformers validates after each interval and at the end, from `eval_delay` on.
    delayed = max(0, math.ceil(first / interval) - 1)
    validations = max(0, math.ceil(end / interval) - 1 - delayed) + (first <= end)
    if not validations:
        origin, unit = config.origin("training_args", "eval_delay"), "epochs" if strategy == "epoch" else "updates"
        fault = f"eval_delay={first:g} is longer than the run of {end:g} {unit}, so the model is never validated"
        if arguments.load_best_model_at_end:
            raise ConfigError(f"{origin}: {fault}, and load_best_model_at_end=True would load nothing: lower it")
        logger.warning("%s: %s: lower it", origin, PublicText(fault))
    if patience is not None and validations <= patience:
        logger.warning(
            "early_stopping_patience=%d cannot stop this run, which has %d validations: lower it, or validate more "
            "often (training_args.eval_steps)",
            *(patience, validations),
        )
