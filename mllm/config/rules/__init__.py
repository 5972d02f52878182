"""Rules across the sections of a config and the hardware.

What cannot work is refused with a sentence before anything is loaded; what cannot have been meant otherwise is adapted,
with a line in the log.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from mllm.config.checkpoint import Checkpoint, inspect_checkpoint
from mllm.config.defaults import with_defaults
from mllm.config.hardware import Hardware
from mllm.config.rules import distillation as distill_rules
from mllm.config.rules import grounding as grounding_rules
from mllm.config.rules import packing as text_rules
from mllm.config.rules import privacy as privacy_rules
from mllm.config.rules import stopping as stopping_rules
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError
from mllm.family import FAMILIES, Family

logger = logging.getLogger(__name__)

AMPERE = (8, 0)
"""The first compute capability with bf16 and tf32 units; PyTorch emulates bf16 below it and reports it as supported."""
ADAPTED_OPTIMIZER = "adamw_torch"
WITHOUT_EFFECT = (
    *("label_smoothing_factor", "neftune_noise_alpha", "use_liger_kernel", "torch_empty_cache_steps"),
    *("auto_find_batch_size", "train_sampling_strategy", "include_num_input_tokens_seen"),
)
"""Keys of `training_args` that Trainer would read in code that the learner takes the place of."""


def apply_rules(config: RunConfig, hardware: Hardware) -> tuple[RunConfig, Hardware]:
    """The config and the hardware as the run will use them.

    Raises `ConfigError` for a combination that cannot work. `training_args.remove_unused_columns` is always False: the
    encoder, not the trainer, decides what reaches the model.
    """
    config = config.replaced(model_args=with_defaults(config.model_args))
    checkpoint = inspect_checkpoint(config.model_args.model_name_or_path)
    family = FAMILIES.find(config.model_args.type).part(config.model_args.part)
    grounding_rules.refuse_objectives_without_heads(config)
    distill_rules.refuse_wrong_parts(config)
    for rule in family.rules:
        rule(config, checkpoint)
    refuse_other_architectures(config, checkpoint, family)
    distill_rules.refuse_wrong_lessons(config)
    refuse_quantization_conflicts(config)
    refuse_missing_rank(config)
    refuse_two_precisions(config)
    refuse_no_updates(config)
    refuse_what_has_no_effect(config)
    text_rules.refuse_packing(config, checkpoint, family)
    privacy_rules.refuse_private_conflicts(config)
    stopping_rules.refuse_blind_stopping(config)
    if config.training_args["use_cpu"]:
        hardware = replace(hardware, device="cpu", name="CPU (use_cpu=True)", capability=None, memory=0, count=0)
    if hardware.device == "cpu":
        config, hardware = adapt_to_cpu(config, hardware)
    else:
        refuse_old_card(config, hardware)
    config, hardware = choose_precision(config, hardware)
    config = adapt_checkpointing(config)
    return config.replaced(**{"training_args.remove_unused_columns": False}), hardware


def refuse_other_architectures(config: RunConfig, checkpoint: Checkpoint, family: Family) -> None:
    """Raise `ConfigError` for a checkpoint of an architecture that the type does not read."""
    if checkpoint.model_type is None or not family.model_types or checkpoint.model_type in family.model_types:
        return
    readable = " or ".join(dict.fromkeys(FAMILIES.title(model_type) for model_type in sorted(family.model_types)))
    raise ConfigError(
        f"{config.place('model_args', 'type')}: type='{family.type}' reads a {readable} checkpoint, and "
        f"{config.model_args.model_name_or_path} is a {checkpoint.title} checkpoint: use "
        f"type='{FAMILIES.reading(checkpoint.model_type).type}', or name another checkpoint"
    )


def refuse_quantization_conflicts(config: RunConfig) -> None:
    """Refuses 4-bit with 8-bit, and merging an adapter into quantized weights."""
    args = config.model_args
    if args.load_in_4bit and args.load_in_8bit:
        raise ConfigError(
            f"{config.place('model_args', 'load_in_4bit')}: load_in_4bit=True and load_in_8bit=True "
            f"({config.place('model_args', 'load_in_8bit')}) exclude each other: set one of them to False"
        )
    for key, is_set in (("load_in_4bit", args.load_in_4bit), ("load_in_8bit", args.load_in_8bit)):
        if args.merge_lora and is_set:
            raise ConfigError(
                f"{config.place('model_args', 'merge_lora')}: merge_lora=True and {key}=True "
                f"({config.place('model_args', key)}) exclude each other, because an adapter is merged into "
                f"full-precision weights only: set one of them to False"
            )


def refuse_missing_rank(config: RunConfig) -> None:
    """Refuses lora_r=None where there is no adapter whose rank could be taken."""
    args = config.model_args
    trains_lora = FAMILIES.find(args.type).part(args.part).trains_lora(args)
    if args.lora_r is None and args.adapter_path is None and trains_lora:
        raise ConfigError(
            f"{config.place('model_args', 'lora_r')}: lora_r=None takes the rank of adapter_path, which is None too: "
            f"set lora_r to a rank such as 16, or adapter_path to an adapter"
        )


def refuse_two_precisions(config: RunConfig) -> None:
    """Refuses fp16 with bf16, and evaluation in plain fp16."""
    args = config.training_args
    if args["fp16"] and args["bf16"]:
        raise ConfigError(
            f"{config.place('training_args', 'fp16')}: fp16=True and bf16=True "
            f"({config.place('training_args', 'bf16')}) exclude each other: set one of them to False"
        )
    if args["fp16_full_eval"]:
        raise ConfigError(
            f"{config.place('training_args', 'fp16_full_eval')}: fp16_full_eval=True casts the whole model to fp16, "
            f"where activations overflow: set it to False; fp16=True is safe"
        )


def refuse_no_updates(config: RunConfig) -> None:
    """Refuses a training of no update at all: its adapter would change nothing."""
    args = config.training_args
    steps = args["max_steps"]
    if steps == 0 or steps < -1:
        raise ConfigError(
            f"{config.place('training_args', 'max_steps')}: max_steps={steps} trains nothing: set it to at least 1, or "
            f"to -1 for num_train_epochs={args['num_train_epochs']}"
        )
    if args["learning_rate"] == 0:
        place = config.place("training_args", "learning_rate")
        raise ConfigError(f"{place}: learning_rate=0 trains nothing: set it above 0, to 1e-4 for example")
    if steps < 0 and args["num_train_epochs"] <= 0:
        raise ConfigError(
            f"{config.place('training_args', 'num_train_epochs')}: num_train_epochs={args['num_train_epochs']} trains "
            f"nothing: set it above 0, or max_steps to at least 1"
        )


def refuse_what_has_no_effect(config: RunConfig) -> None:
    """Refuses options that would change a loss, a batch or a model of Trainer's own, which this training has not."""
    for key in WITHOUT_EFFECT:
        value = config.training_args[key]
        if value not in (None, False, 0, "no", "random"):
            raise ConfigError(
                f"{config.place('training_args', key)}: {key}={value!r} has no effect, because objectives make the "
                f"loss and the sampler makes the batches: remove it"
            )


def refuse_old_card(config: RunConfig, hardware: Hardware) -> None:
    """Refuses bf16 and tf32 on a card that lacks them."""
    if hardware.capability is None or hardware.capability >= AMPERE:
        return
    card = f"{hardware.name} has compute capability {hardware.capability[0]}.{hardware.capability[1]}"
    remedies = {"bf16": "bf16=False and fp16=True", "bf16_full_eval": "bf16_full_eval=False", "tf32": "tf32=False"}
    for key, remedy in remedies.items():
        if config.training_args[key]:
            raise ConfigError(
                f"{config.place('training_args', key)}: {key}=True needs compute capability 8.0 or newer and {card}: "
                f"set {remedy} in training_args"
            )


def adapt_to_cpu(config: RunConfig, hardware: Hardware) -> tuple[RunConfig, Hardware]:
    """Replaces what only a GPU can do; 4-bit and 8-bit stay, because bitsandbytes trains on a CPU."""
    args = config.training_args
    changes: dict[str, object] = {}
    if args["fp16"]:
        changes["fp16"] = False
        logger.info("on a CPU fp16 is slow and overflows: training in fp32")
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
    if isinstance(optimizer, str) and any(mark in optimizer for mark in ("paged", "8bit", "4bit", "bnb")):
        changes["optim"] = ADAPTED_OPTIMIZER
        logger.info("the optimizer '%s' needs a GPU: using '%s'", optimizer, ADAPTED_OPTIMIZER)
    changes["dataloader_pin_memory"] = False
    if args["dataloader_pin_memory"] and config.is_written("training_args", "dataloader_pin_memory"):
        logger.info("without a GPU there is no memory to pin for: dataloader_pin_memory is off")
    return config.replaced(**{f"training_args.{key}": value for key, value in changes.items()}), hardware


def choose_precision(config: RunConfig, hardware: Hardware) -> tuple[RunConfig, Hardware]:
    """Says how weights and activations are held; fp16 keeps the residual stream in fp32 and never autocasts."""
    if config.training_args["fp16"]:
        logger.info(
            "fp16: weights in fp16, 8-bit or 4-bit; residual stream and adapters in fp32, as activations overflow fp16"
        )
        return config.replaced(**{"training_args.fp16": False}), replace(hardware, precision="fp16")
    if config.training_args["bf16"]:
        return config, replace(hardware, precision="bf16")
    return config, replace(hardware, precision="fp32")


def adapt_checkpointing(config: RunConfig) -> RunConfig:
    """Gradient checkpointing without re-entrance: the re-entrant kind loses gradients where inputs need none."""
    for name in ("gradient_checkpointing", "activation_checkpointing"):  # transformers is renaming it
        options = config.training_args.get(f"{name}_kwargs") or {}
        if config.training_args.get(name) and options.get("use_reentrant") is not False:
            logger.info("gradient checkpointing: use_reentrant is set to False")
            config = config.replaced(**{f"training_args.{name}_kwargs": {**options, "use_reentrant": False}})
    return config
