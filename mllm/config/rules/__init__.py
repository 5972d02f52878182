"""Rules across the sections of a config and the hardware.

What cannot work is refused with a sentence before anything is loaded; what cannot have been meant otherwise is adapted,
with a line in the log.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from mllm.config.checking import known_model
from mllm.config.checkpoint import Checkpoint, inspect_checkpoint
from mllm.config.defaults import SHIKRA_TYPES, with_defaults
from mllm.config.hardware import Hardware
from mllm.config.rules import distillation as distill_rules
from mllm.config.rules import grounding as grounding_rules
from mllm.config.rules import packing as text_rules
from mllm.config.rules import privacy as privacy_rules
from mllm.config.rules import stopping as stopping_rules
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError

logger = logging.getLogger(__name__)

AMPERE = (8, 0)
"""The first compute capability with bf16 and tf32 units; PyTorch emulates bf16 below it and reports it as supported."""
IMAGE_TOKENS = (256, 128, 64, 32, 16)
"""Tokens of one image that Gemma 3's projector can pool to."""
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
    refuse_wrong_family(config, checkpoint)
    grounding_rules.refuse_shikra_keys(config)
    grounding_rules.refuse_wrong_llava(config, checkpoint)
    grounding_rules.refuse_freezing_conflicts(config)
    grounding_rules.refuse_objectives_without_heads(config)
    distill_rules.refuse_wrong_parts(config, checkpoint)
    distill_rules.refuse_wrong_lessons(config)
    refuse_quantization_conflicts(config)
    refuse_missing_rank(config)
    refuse_two_precisions(config)
    refuse_no_updates(config)
    refuse_what_has_no_effect(config)
    text_rules.refuse_packing(config, checkpoint)
    privacy_rules.refuse_private_conflicts(config)
    stopping_rules.refuse_blind_stopping(config)
    if config.model_args.type == "medgemma":
        refuse_image_tokens(config, checkpoint)
        refuse_image_size(config, checkpoint)
        refuse_short_max_length(config, checkpoint)
    if config.training_args["use_cpu"]:
        hardware = replace(hardware, device="cpu", name="CPU (use_cpu=True)", capability=None, memory=0, count=0)
    if hardware.device == "cpu":
        config, hardware = adapt_to_cpu(config, hardware)
    else:
        refuse_old_card(config, hardware)
    config, hardware = choose_precision(config, hardware)
    config = adapt_checkpointing(config)
    return config.replaced(**{"training_args.remove_unused_columns": False}), hardware


def refuse_wrong_family(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuses a type that is not registered, or that cannot read the checkpoint."""
    args = config.model_args
    place = config.place("model_args", "type")
    family = checkpoint.model_type
    if args.type in SHIKRA_TYPES and checkpoint.is_gemma:
        raise ConfigError(
            f"{place}: type='{args.type}' cannot read {args.model_name_or_path}: "
            f"it is a {checkpoint.title} checkpoint; use type='medgemma'"
        )
    known_model(args.type, config.places)
    if args.type != "medgemma" or family in (None, "gemma3"):
        return
    if family == "gemma3_text":
        raise ConfigError(
            f"{place}: type='medgemma' cannot read {args.model_name_or_path}: it is a Gemma 3 checkpoint "
            f"for text only, without a vision tower; use a checkpoint that reads images, such as google/medgemma-4b-it"
        )
    raise ConfigError(
        f"{place}: type='medgemma' cannot read {args.model_name_or_path}: it is a {checkpoint.title} checkpoint; "
        f"use type='image-text' or a Gemma 3 checkpoint such as google/medgemma-4b-it"
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
    if args.lora_r is None and args.adapter_path is None and not grounding_rules.without_lora(args):
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


def token_grid(image_token_len: int) -> tuple[int, int]:
    """The rows and columns that an image's tokens form: (16, 16) for 256, (16, 8) for 128."""
    columns = 1 << ((image_token_len.bit_length() - 1) // 2)
    return image_token_len // columns, columns


def refuse_image_tokens(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuses a number of image tokens that Gemma 3's projector cannot pool to."""
    tokens = config.model_args.image_token_len
    if tokens is not None and tokens not in (*IMAGE_TOKENS, checkpoint.image_tokens):
        raise ConfigError(
            f"{config.place('model_args', 'image_token_len')}: image_token_len={tokens} cannot be pooled to "
            f"by Gemma 3's projector: use {', '.join(map(str, IMAGE_TOKENS[:-1]))} or {IMAGE_TOKENS[-1]}"
        )


def refuse_image_size(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuses an image size that is not a whole number of patches, or whose patches the pool does not divide."""
    args = config.model_args
    tokens = args.image_token_len or checkpoint.image_tokens
    if args.image_size is None and args.image_token_len is None:
        return
    size = args.image_size or checkpoint.image_size
    place = config.place("model_args", "image_size" if args.image_size else "image_token_len")
    rows, columns = token_grid(tokens)
    step = checkpoint.patch_size * max(rows, columns)
    valid = f"use a multiple of {step} such as {max(1, round(size / step)) * step}"
    if size % checkpoint.patch_size:
        raise ConfigError(
            f"{place}: image_size={size} is not a multiple of {checkpoint.patch_size}, the side of a patch: {valid}"
        )
    grid = size // checkpoint.patch_size
    if grid % rows or grid % columns:
        raise ConfigError(
            f"{place}: image_size={size} gives {grid} x {grid} patches, which cannot be pooled to {tokens} tokens "
            f"({rows} x {columns}): {valid}"
        )


def refuse_short_max_length(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuses a max_length that has no room for one image and one answer token."""
    args = config.model_args
    tokens = args.image_token_len or checkpoint.image_tokens
    # An image stands between a start and an end marker and two line breaks.
    least = tokens + 2 + 2 + 1
    if args.max_length < least:
        raise ConfigError(
            f"{config.place('model_args', 'max_length')}: max_length={args.max_length} has no room for one image of "
            f"{tokens} tokens with its markers and one answer token: set it to at least {least} "
            f"plus the length of the text"
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
