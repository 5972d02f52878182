"""Rules for engines that divide gradients and weights among processes: DeepSpeed and FSDP2."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm.config.schema import ModelArgs, RunConfig
from mllm.errors import ConfigError, hint

TRUE_VALUES = ("1", "true", "yes", "y", "on", "t")
"""Values of a variable of accelerate, in lower case, that turn it on."""
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or sharded data parallelism)",
}
"""Variables with which `accelerate launch` turns on an engine that shards the weights, and the engine."""
INSTEAD = (
    "is only supported through training_args: start with mllm launch or accelerate launch --multi_gpu, and set fsdp or "
    "deepspeed as config/_base_/runtime/fsdp2.py and zero3.py do"
)
FSDP_VALUES = (True, "full_shard", "full_shard auto_wrap", ["full_shard"], ["full_shard", "auto_wrap"])
"""Values of `fsdp` that mean FSDP2 with all weights divided."""
FSDP_KEYS: dict[str, tuple[Any, ...] | None] = {
    "version": (2,),
    "transformer_layer_cls_to_wrap": None,
    "reshard_after_forward": (True, False),
    "auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "NO_WRAP"),
    "state_dict_type": ("FULL_STATE_DICT",),
    "cpu_ram_efficient_loading": (False,),
    "cpu_offload": (False,),
    "activation_checkpointing": (False,),
    "xla": (False,),
}
"""Keys of `fsdp_config`, without the prefix `fsdp_`, and their values; None: any."""
ELSEWHERE = {
    "optimizer": "training_args.optim and learning_rate",
    "scheduler": "training_args.lr_scheduler_type and warmup_steps",
    "fp16": "training_args.fp16",
    "bf16": "training_args.bf16",
    "torch_autocast": "training_args.bf16",
    "train_batch_size": "training_args.per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "training_args.per_device_train_batch_size",
    "gradient_accumulation_steps": "training_args.gradient_accumulation_steps",
    "gradient_clipping": "training_args.max_grad_norm",
}
"""Parts of DeepSpeed's settings that this program sets otherwise, and the keys to use instead."""
AUTO = "auto"


def refuse_wrong_engines(config: RunConfig) -> None:
    """Raise `ConfigError` for settings of DeepSpeed and FSDP that cannot work, before weights are loaded.

    `accelerate launch` selects engines by environment variables, which are checked, too.
    """
    args = config.training_args
    if args["fsdp"] and args["deepspeed"]:
        raise ConfigError(
            f"{config.origin('training_args', 'fsdp')}: fsdp and deepspeed exclude each other: remove one"
        )
    _refuse_wrong_fsdp(config)
    options = deepspeed_options(config)
    if options:
        _refuse_wrong_deepspeed(config, options)
    for name, engine in SHARDING.items():
        if _is_on(name):
            raise ConfigError(f"the environment variable {name} is set, and {engine} {INSTEAD}")
    if _is_on("ACCELERATE_USE_DEEPSPEED") and not options:
        _refuse_launched_zero_3()


def engine_of(config: RunConfig) -> str:
    """Return 'fsdp2', 'zero0' to 'zero3', or 'ddp'."""
    if config.training_args["fsdp"]:
        return "fsdp2"
    options = deepspeed_options(config)
    return f"zero{_stage(options)}" if options else "ddp"


def fsdp_options(config: RunConfig) -> dict[str, Any]:
    """Return `training_args.fsdp_config`, a dict or a JSON file, without the prefix `fsdp_` of its keys."""
    value = config.training_args["fsdp_config"]
    if isinstance(value, str):
        value = _read_options(value, f"{config.origin('training_args', 'fsdp_config')}: fsdp_config")
    return {key.removeprefix("fsdp_"): item for key, item in (value or {}).items()}


def _refuse_wrong_fsdp(config: RunConfig) -> None:
    args, origin = config.training_args, config.origin("training_args", "fsdp")
    if not args["fsdp"]:
        if args["fsdp_config"]:
            raise ConfigError(f"{config.origin('training_args', 'fsdp_config')}: fsdp_config needs fsdp=True: set it")
        return
    if args["fsdp"] not in FSDP_VALUES:
        raise ConfigError(f"{origin}: fsdp={args['fsdp']!r} is not supported: write fsdp=True, which is FSDP2")
    options, place = fsdp_options(config), config.origin("training_args", "fsdp_config")
    for key, value in options.items():
        if key not in FSDP_KEYS:
            raise ConfigError(f"{place}: fsdp_config has no supported key '{key}'{hint(key, FSDP_KEYS)}")
        allowed = FSDP_KEYS[key]
        if allowed is not None and value not in allowed:
            values = " or ".join(map(repr, allowed))
            raise ConfigError(f"{place}: fsdp_config: {key}={value!r} is not supported: write {values}, or remove it")
    _refuse_quantized(config, origin, "fsdp")


def _refuse_wrong_deepspeed(config: RunConfig, options: Mapping[str, Any]) -> None:
    args, origin = config.training_args, config.origin("training_args", "deepspeed")
    for section, keys in ELSEWHERE.items():
        value = options.get(section, AUTO)
        if isinstance(value, Mapping):
            value = value.get("enabled", value)
        if value not in (False, AUTO):
            raise ConfigError(f"{origin}: deepspeed.{section} is not supported: remove it, and set {keys}")
    zero, stage = options.get("zero_optimization", {}), _stage(options)
    if stage not in ("0", "1", "2", "3"):
        raise ConfigError(f"{origin}: deepspeed.zero_optimization.stage={zero.get('stage')!r} must be 1, 2 or 3")
    if stage != "3":
        return
    _refuse_quantized(config, origin, "deepspeed with ZeRO stage 3")
    for key in ("offload_param", "offload_optimizer", "zero_quantized_weights", "zero_hpz_partition_size"):
        value = zero.get(key)
        if value and not (isinstance(value, Mapping) and value.get("device", "none") == "none"):
            raise ConfigError(f"{origin}: deepspeed.zero_optimization.{key} was not tested with stage 3: remove it")
    if args["load_best_model_at_end"]:
        raise ConfigError(
            f"{config.origin('training_args', 'load_best_model_at_end')}: load_best_model_at_end=True is not possible "
            "with ZeRO stage 3, which cannot load a checkpoint after it wrote one: remove it, or use ZeRO stage 2 or "
            "FSDP"
        )


def _refuse_quantized(config: RunConfig, origin: str, engine: str) -> None:
    """Raise `ConfigError` if the model or the teacher is quantized."""
    models: dict[str, ModelArgs] = {"model_args": config.model_args}
    if config.distill_args is not None:
        models["distill_args.teacher"] = config.distill_args.teacher
    for section, args in models.items():
        for key in ("load_in_4bit", "load_in_8bit"):
            if vars(args)[key]:
                raise ConfigError(
                    f"{origin}: {engine} cannot divide quantized weights, and {section}.{key} is set: remove it, or "
                    "use DDP or ZeRO stage 2, where each process holds all weights"
                )


def _refuse_launched_zero_3() -> None:
    """Raise `ConfigError` for ZeRO-3 in an option or in the DeepSpeed file of `accelerate launch`."""
    name = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
    if os.environ.get(name, "2") == "3":
        raise ConfigError(f"the environment variable {name} is 3, and ZeRO stage 3 {INSTEAD}")
    name = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
    file = os.environ.get(name, "none")
    if file != "none" and _stage(_read_options(file, f"the environment variable {name}")) == "3":
        raise ConfigError(f"the environment variable {name} names {file}, and ZeRO stage 3 {INSTEAD}")


def deepspeed_options(config: RunConfig) -> Mapping[str, Any]:
    """Return the settings of `training_args.deepspeed`, a dict or a JSON file; an empty dict if it is not set.

    Raises:
        ConfigError: The file cannot be read, or the package is missing.
    """
    value, origin = config.training_args["deepspeed"], config.origin("training_args", "deepspeed")
    if not value:
        return {}
    options = _read_options(value, f"{origin}: deepspeed") if isinstance(value, str) else value
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"{origin}: deepspeed needs the package deepspeed: pip install -e '.[deepspeed]'")
    return dict(options)


def _read_options(file: str, subject: str) -> Mapping[str, Any]:
    """Return the settings in a JSON file. Raise `ConfigError`, which begins with `subject`, if it cannot be read."""
    try:
        options = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{subject}={file!r} cannot be read as a JSON file: {error}") from error
    if not isinstance(options, Mapping):
        raise ConfigError(f"{subject}={file!r} must hold a JSON object with settings")
    return options


def stage_of(value: str | Mapping[str, Any]) -> str:
    """Return the stage of ZeRO in the value of `training_args.deepspeed`, such as '2'.

    Raises:
        ConfigError: It names a file that cannot be read.
    """
    return _stage(_read_options(value, "training_args.deepspeed") if isinstance(value, str) else value)


def zero_options(value: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the section `zero_optimization` of the value of `training_args.deepspeed`; see `stage_of`."""
    options = _read_options(value, "training_args.deepspeed") if isinstance(value, str) else value or {}
    zero = options.get("zero_optimization")
    return zero if isinstance(zero, Mapping) else {}


def _stage(options: Mapping[str, Any]) -> str:
    """Return the stage of ZeRO as text: DeepSpeed accepts 3, 3.0 and "3"."""
    return str(zero_options(options).get("stage", 0)).strip().removesuffix(".0")


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in TRUE_VALUES
