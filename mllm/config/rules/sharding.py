"""Rules for engines that shard weights over processes: DeepSpeed and FSDP."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm.config.schema import RunConfig
from mllm.errors import ConfigError

TRUE_VALUES = ("1", "true", "yes", "y", "on", "t")
"""Values of a variable of accelerate, in lower case, that turn it on."""
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or sharded data parallelism)",
}
"""Variables with which `accelerate launch` turns on an engine that shards the weights, and the engine."""
ALTERNATIVE = "start one process per GPU with torchrun, or use ZeRO-2, where each process holds all weights"
REASON = f"is not supported, because the adapter could not be exported: {ALTERNATIVE}"


def refuse_sharded_weights(config: RunConfig) -> None:
    """Raise `ConfigError` for FSDP, ZeRO-3 and other engines that shard the weights: an export would be incomplete.

    `accelerate launch` selects them by environment variables, which are checked, too.
    """
    args = config.training_args
    if args["fsdp"] or args["fsdp_config"]:
        key = "fsdp" if args["fsdp"] else "fsdp_config"
        raise ConfigError(f"{config.origin('training_args', key)}: {key} {REASON}")
    if _stage(deepspeed_options(config)) == "3":
        raise ConfigError(f"{config.origin('training_args', 'deepspeed')}: deepspeed with ZeRO stage 3 {REASON}")
    for name, engine in SHARDING.items():
        if _is_on(name):
            raise ConfigError(f"the environment variable {name} is set, and {engine} {REASON}")
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        _refuse_launched_zero_3()


def _refuse_launched_zero_3() -> None:
    """Raise `ConfigError` for ZeRO-3 in an option or in the DeepSpeed file of `accelerate launch`."""
    name = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
    if os.environ.get(name, "2") == "3":
        raise ConfigError(f"the environment variable {name} is 3, and ZeRO stage 3 {REASON}")
    name = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
    file = os.environ.get(name, "none")
    if file != "none" and _stage(_read_options(file, f"the environment variable {name}")) == "3":
        raise ConfigError(f"the environment variable {name} names {file}, and ZeRO stage 3 {REASON}")


def deepspeed_options(config: RunConfig) -> Mapping[str, Any]:
    """Return the settings of `training_args.deepspeed`, a dict or a JSON file; an empty dict if it is not set.

    Raises:
        ConfigError: The file cannot be read, or the package is missing.
    """
    value, origin = config.training_args["deepspeed"], config.origin("training_args", "deepspeed")
    if not value:
        return {}
    options = _read_options(value, f"{origin}: deepspeed") if isinstance(value, str) else value
    if _stage(options) != "3" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"{origin}: deepspeed needs the package deepspeed: pip install -e '.[deepspeed]'")
    return dict(options)


def _read_options(file: str, subject: str) -> Mapping[str, Any]:
    """Return the settings in a JSON file of DeepSpeed. Raise `ConfigError`, which begins with `subject`, without it."""
    try:
        options = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{subject}={file!r} cannot be read as a JSON file: {error}") from error
    if not isinstance(options, Mapping):
        raise ConfigError(f"{subject}={file!r} must hold a JSON object with DeepSpeed's settings")
    return options


def stage_of(value: str | Mapping[str, Any]) -> str:
    """Return the stage of ZeRO in the value of `training_args.deepspeed`, such as '2'.

    Raises:
        ConfigError: It names a file that cannot be read.
    """
    return _stage(_read_options(value, "training_args.deepspeed") if isinstance(value, str) else value)


def _stage(options: Mapping[str, Any]) -> str:
    """Return the stage of ZeRO as text: DeepSpeed accepts 3, 3.0 and "3"."""
    zero = options.get("zero_optimization")
    return str(zero.get("stage", 0)).strip().removesuffix(".0") if isinstance(zero, Mapping) else "0"


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in TRUE_VALUES
