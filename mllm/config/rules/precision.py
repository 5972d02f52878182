"""Rules for precision and hardware."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError

logger = logging.getLogger(__name__)

AMPERE = (8, 0)
"""First compute capability with bf16 and tf32 units. PyTorch emulates bf16 below it and reports it as supported."""
CPU_OPTIMIZER = "adamw_torch"
"""Replacement of optimizers that need a GPU."""


def refuse_two_precisions(config: RunConfig) -> None:
    """Raise `ConfigError` for fp16 with bf16, and for evaluation in plain fp16."""
    args = config.training_args
    if args["fp16"] and args["bf16"]:
        raise ConfigError(
            f"{config.origin('training_args', 'fp16')}: fp16=True and bf16=True "
            f"({config.origin('training_args', 'bf16')}) exclude each other: set one of them to False"
        )
    if args["fp16_full_eval"]:
        raise ConfigError(
            f"{config.origin('training_args', 'fp16_full_eval')}: fp16_full_eval=True casts the whole model to fp16, "
            f"where activations overflow: set it to False; fp16=True is safe"
        )


def refuse_unsupported_precision(config: RunConfig, hardware: Hardware) -> None:
    """Raise `ConfigError` for bf16 and tf32 on a GPU that does not support them."""
    if hardware.capability is None or hardware.capability >= AMPERE:
        return
    card = f"{hardware.name} has compute capability {hardware.capability[0]}.{hardware.capability[1]}"
    fixes = {"bf16": "bf16=False and fp16=True", "bf16_full_eval": "bf16_full_eval=False", "tf32": "tf32=False"}
    for key, fix in fixes.items():
        if config.training_args[key]:
            raise ConfigError(
                f"{config.origin('training_args', key)}: {key}=True needs compute capability 8.0 or newer and {card}: "
                f"set {fix} in training_args"
            )


def adapt_to_cpu(config: RunConfig, hardware: Hardware) -> tuple[RunConfig, Hardware]:
    """Replace settings that need a GPU; 4-bit and 8-bit stay, because bitsandbytes trains on a CPU."""
    args = config.training_args
    changes: dict[str, object] = {}
    if args["fp16"] and not config.hardware.get("fp16"):
        changes["fp16"] = False
        logger.info("on a CPU fp16 is slow: training in fp32 (keep it with hardware = dict(fp16=True))")
    if args["bf16"] and not config.hardware.get("bf16"):
        changes["bf16"] = False
        logger.info("on a CPU bf16 is slow: training in fp32 (keep it with hardware = dict(bf16=True))")
    if args["bf16_full_eval"] and not config.hardware.get("bf16"):
        changes["bf16_full_eval"] = False
        logger.info("on a CPU bf16 is slow: evaluating in fp32 (keep it with hardware = dict(bf16=True))")
    if args["tf32"]:
        changes["tf32"] = False
        logger.info("a CPU has no tf32: tf32 is off")
    optimizer = args["optim"]
    if isinstance(optimizer, str) and any(part in optimizer for part in ("paged", "8bit", "4bit", "bnb")):
        changes["optim"] = CPU_OPTIMIZER
        logger.info("the optimizer '%s' needs a GPU: using '%s'", optimizer, CPU_OPTIMIZER)
    changes["dataloader_pin_memory"] = False
    if args["dataloader_pin_memory"] and config.is_written("training_args", "dataloader_pin_memory"):
        logger.info("dataloader_pin_memory needs a GPU: it is off")
    return config.replaced(**{f"training_args.{key}": value for key, value in changes.items()}), hardware


def choose_precision(config: RunConfig, hardware: Hardware) -> tuple[RunConfig, Hardware]:
    """Set the precision of weights and activations; fp16 keeps the residual stream in fp32 and never uses autocast."""
    if config.training_args["fp16"]:
        logger.info(
            "fp16: weights in fp16, 8-bit or 4-bit; residual stream and adapters in fp32, since activations exceed fp16"
        )
        changes = {"training_args.fp16": False, "is_fp16": True}
        return config.replaced(**changes), replace(hardware, precision="fp16")
    if config.training_args["bf16"]:
        return config, replace(hardware, precision="bf16")
    return config, replace(hardware, precision="fp32")


def refuse_other_autocast(config: RunConfig) -> None:
    """Raise `ConfigError` if `accelerate launch` selects a precision of autocast other than that of the config.

    accelerate reads it from an environment variable, also from its default config file. fp16 would overflow.
    """
    name = "ACCELERATE_MIXED_PRECISION"
    value = os.environ.get(name, "no").lower()
    if value in ("", "no") or (value == "bf16" and config.training_args["bf16"]):
        return
    raise ConfigError(
        f"the environment variable {name} is {value}, so all layers would run in {value} autocast, which the config "
        "does not select: use accelerate launch --mixed_precision no, and set the precision in training_args"
    )
