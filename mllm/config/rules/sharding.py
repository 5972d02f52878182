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
ALTERNATIVE = "start one process per GPU with torchrun, or use ZeRO-2, where each process holds all weights"


def refuse_sharded_weights(config: RunConfig) -> None:
    """Raise `ConfigError` for FSDP and ZeRO-3, which shard the weights: an export would be incomplete.

    `accelerate launch` selects them by environment variables, which are checked, too.
    """
    args = config.training_args
    origin = config.origin("training_args", "fsdp")
    if args["fsdp"] or args["fsdp_config"]:
        raise ConfigError(f"{origin}: fsdp is not supported, because the adapter could not be exported: {ALTERNATIVE}")
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in TRUE_VALUES:
        raise ConfigError(
            "the environment variable ACCELERATE_USE_FSDP is set, and FSDP is not supported, because the adapter could "
            f"not be exported: {ALTERNATIVE}"
        )
    options = deepspeed_options(config)
    if _stage(options) == 3:
        raise ConfigError(
            f"{config.origin('training_args', 'deepspeed')}: deepspeed with ZeRO stage 3 is not supported, because the "
            f"adapter could not be exported: {ALTERNATIVE}"
        )
    if (
        os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in TRUE_VALUES
        and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2") == "3"
    ):
        raise ConfigError(
            "the environment variable ACCELERATE_DEEPSPEED_ZERO_STAGE is 3, and ZeRO stage 3 is not supported, because "
            f"the adapter could not be exported: {ALTERNATIVE}"
        )


def deepspeed_options(config: RunConfig) -> Mapping[str, Any]:
    """Return the settings of `training_args.deepspeed`, a dict or a JSON file; an empty dict if it is not set.

    Raises:
        ConfigError: The file cannot be read, or the package is missing.
    """
    value, origin = config.training_args["deepspeed"], config.origin("training_args", "deepspeed")
    if not value:
        return {}
    options = value
    if isinstance(value, str):
        try:
            options = json.loads(Path(value).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{origin}: deepspeed={value!r} cannot be read as a JSON file: {error}") from error
    if not isinstance(options, Mapping):
        raise ConfigError(f"{origin}: deepspeed={value!r} must hold a JSON object with DeepSpeed's settings")
    if _stage(options) != 3 and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"{origin}: deepspeed needs the package deepspeed: pip install -e '.[deepspeed]'")
    return options


def _stage(options: Mapping[str, Any]) -> Any:
    zero = options.get("zero_optimization")
    return zero.get("stage", 0) if isinstance(zero, Mapping) else 0
