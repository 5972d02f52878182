"""Rules across the sections of a config and the hardware.

A combination that cannot work is refused with one sentence before anything is loaded. A setting whose intent is
unambiguous is adapted with a log line. `apply_rules` lists the rules in their order.
"""

from __future__ import annotations

from dataclasses import replace

from mllm.config.checkpoint import Checkpoint, inspect_checkpoint
from mllm.config.defaults import with_defaults
from mllm.config.hardware import Hardware
from mllm.config.rules import (
    adapters,
    attention,
    distillation,
    grounding,
    packing,
    precision,
    privacy,
    processes,
    sharding,
    sharing,
    stopping,
    trainable,
    training,
)
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError
from mllm.family import FAMILIES, Family


def apply_rules(config: RunConfig, hardware: Hardware) -> tuple[RunConfig, Hardware]:
    """Check the rules and return config and hardware as the run uses them.

    `training_args.remove_unused_columns` is always False: the encoder decides which tensors reach the model. Raises
    `ConfigError` for a combination that cannot work.
    """
    processes.refuse_unconnected_processes()
    config = config.replaced(model_args=with_defaults(config.model_args))
    checkpoint = inspect_checkpoint(config.model_args.model_name_or_path)
    family = FAMILIES.find(config.model_args.type, config.model_args.part)
    grounding.refuse_objectives_without_heads(config)
    distillation.refuse_wrong_parts(config)
    for rule in family.rules:
        rule(config, checkpoint)
    refuse_other_architectures(config, checkpoint, family)
    distillation.refuse_unsupported_objectives(config)
    adapters.refuse_quantization_conflicts(config)
    adapters.refuse_missing_rank(config)
    trainable.refuse_trainable_conflicts(config, checkpoint, family)
    precision.refuse_two_precisions(config)
    training.refuse_no_updates(config)
    training.refuse_auto_micro_batches(config)
    attention.refuse_wrong_attention(config, checkpoint)
    packing.refuse_packing(config, checkpoint, family)
    sharing.refuse_sharing(config, checkpoint, family)
    privacy.refuse_private_conflicts(config)
    stopping.refuse_stopping_without_validation(config)
    training.refuse_unsupported_arguments(config)
    sharding.refuse_wrong_engines(config)
    training.refuse_unsuitable_trackers(config)
    training.refuse_unknown_metric(config)
    training.refuse_best_without_measurement(config)
    if config.training_args["use_cpu"]:
        hardware = replace(hardware, device="cpu", name="CPU (use_cpu=True)", capability=None, memory=0, count=0)
    processes.refuse_processes_without_gpu(hardware)
    if hardware.device == "cpu":
        config, hardware = precision.adapt_to_cpu(config, hardware)
    else:
        precision.refuse_unsupported_precision(config, hardware)
    config, hardware = precision.choose_precision(config, hardware)
    precision.refuse_other_autocast(config)
    training.refuse_liger(config, hardware)
    config = training.adapt_checkpointing(config)
    return config.replaced(**{"training_args.remove_unused_columns": False}), hardware


def refuse_other_architectures(config: RunConfig, checkpoint: Checkpoint, family: Family) -> None:
    """Raise `ConfigError` for a checkpoint of an architecture that the type does not read."""
    if checkpoint.model_type is None or not family.model_types or checkpoint.model_type in family.model_types:
        return
    readable = " or ".join(dict.fromkeys(FAMILIES.title(model_type) for model_type in sorted(family.model_types)))
    raise ConfigError(
        f"{config.origin('model_args', 'type')}: type='{family.type}' reads a {readable} checkpoint, and "
        f"{config.model_args.model_name_or_path} is a {checkpoint.title} checkpoint: use "
        f"type='{FAMILIES.for_architecture(checkpoint.model_type).type}', or name another checkpoint"
    )
