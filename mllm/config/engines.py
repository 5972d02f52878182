"""Settings of the engines FSDP2 and DeepSpeed that this program sets or completes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.config.rules.sharding import AUTO, deepspeed_options, fsdp_options
from mllm.config.schema import RunConfig

FILLED = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_clipping")
"""Settings of DeepSpeed that Trainer fills with those of `training_args`. Without them DeepSpeed would not clip."""
WIDTHS = {
    "reduce_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
}
"""Settings of ZeRO that accelerate would compute from the width of a model of transformers if they are 'auto', and
values for all models; those of DeepSpeed, with smaller buckets of gradients."""


def engine_settings(config: RunConfig) -> dict[str, Any]:
    """Return the keys of `training_args` of the chosen engine as this program uses them."""
    if config.training_args["fsdp"]:
        return {"fsdp": True, "fsdp_config": {**fsdp_options(config), "version": 2}}
    options = deepspeed_options(config)
    return {"deepspeed": completed(options), "bf16": False} if options else {}


def completed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of DeepSpeed with those that Trainer fills, and without DeepSpeed's mixed precision.

    DeepSpeed would convert all weights to bf16, also those that train. Autocast is turned on in the learner instead, as
    on other engines.
    """
    zero = dict(options.get("zero_optimization", {}))
    zero |= {name: value for name, value in WIDTHS.items() if zero.get(name) == AUTO}
    off = {name: {"enabled": False} for name in ("fp16", "bf16")}
    return {**dict.fromkeys(FILLED, AUTO), **options, "zero_optimization": zero, **off}
