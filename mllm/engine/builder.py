"""Builders of learners and trainers from a config."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mllm.config.engines import engine_settings
from mllm.config.hardware import Hardware
from mllm.config.rules.privacy import datasets_in
from mllm.config.rules.sharding import fsdp_options
from mllm.config.schema import PrivacyArgs, RunConfig
from mllm.config.trainable import trained_parts
from mllm.engine.callbacks import Checkpoints, Epochs
from mllm.engine.early_stopping import EarlyStopping
from mllm.engine.learner import Learner, Reduction
from mllm.engine.meter import Meter
from mllm.engine.micro_batches import MicroBatches
from mllm.engine.privacy.mechanism import Mechanism, digest_of_options, hash_of
from mllm.engine.private_trainer import KeepLedger, PrivateTrainer, SaveBelow
from mllm.engine.progress import LogLines, ProgressBar
from mllm.engine.run_log import Details, RunLog
from mllm.engine.sharded_trainer import trains_images
from mllm.engine.trackers import Tracker, public_settings
from mllm.engine.trainer import MultimodalTrainer
from mllm.engine.training_data import TrainingData
from mllm.errors import ConfigError, hint
from mllm.family import FAMILIES
from mllm.objectives.base import Objective
from mllm.protocols import Bundle
from mllm.registry import OBJECTIVES, TRAINERS, build
from mllm.run_files import MICRO_BATCHES, TENSORBOARD

logger = logging.getLogger(__name__)

CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")
"""Old and new name of the setting; transformers is renaming it."""
DEFAULT_TRAINER = "default"
"""Entry of TRAINERS for model types without an entry of their own."""
MECHANISM = (
    *("clip_norm", "noise_multiplier", "target_epsilon", "accountant"),
    *("unit", "clipping", "secure_mode", "test_noise_seed"),
)
"""Fields of `privacy_args` that are fields of `Mechanism`, too."""


def build_learner(config: RunConfig, bundle: Bundle, teacher: Bundle | None = None) -> Learner:
    """Build the learner of a config. Raise `ConfigError` for an invalid objective."""
    objectives: dict[str, Objective] = {}
    for name, options in config.objectives.items():
        if name == "loss" or not name.isidentifier():
            raise ConfigError(
                f"objectives: '{name}' cannot be the name of an objective; call it next_token, for example"
            )
        objectives[name] = build(OBJECTIVES, options, f"objectives.{name}")
        objectives[name].connect(bundle, teacher)
    reduction: Reduction = "items" if config.privacy_args is None else "samples"
    return Learner(bundle.model, objectives, None if teacher is None else teacher.model, reduction)


def prepare_trainer(
    config: RunConfig, hardware: Hardware, learner: Learner, folder: Path, data: TrainingData
) -> MultimodalTrainer:
    """Return the trainer of the config's model type, which writes to `folder`."""
    trainer: MultimodalTrainer = find_builder(config.model_args.type)(config, hardware, learner, folder, data)
    return trainer


def find_builder(type: str) -> Callable[..., MultimodalTrainer]:
    """Return the entry of TRAINERS for a model type, or the default one."""
    build_trainer: Callable[..., MultimodalTrainer] = TRAINERS.find(
        type if type in TRAINERS.names() else DEFAULT_TRAINER
    )
    return build_trainer


@TRAINERS.register_module("default")
def build_multimodal_trainer(
    config: RunConfig, hardware: Hardware, learner: Learner, folder: Path, data: TrainingData
) -> MultimodalTrainer:
    """Build a MultimodalTrainer with its callbacks, or a PrivateTrainer if the config has `privacy_args`."""
    _refuse_unknown_layers(config, learner)
    settings = {**config.training_args, **engine_settings(config)}
    enable_checkpointing(learner, settings)
    limit = settings.pop("save_total_limit")
    patience, threshold = settings.pop("early_stopping_patience"), settings.pop("early_stopping_threshold")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / TENSORBOARD)  # transformers has no argument for it
    meter = Meter()
    log = RunLog({"config": config.name}, meter, log_details(config), term_labels(config.objectives))
    callbacks: list[Any] = [Checkpoints(limit), log, Epochs(data.train_sampler)]
    if patience is not None:
        callbacks.append(EarlyStopping(patience, threshold))
    kind: Any = MultimodalTrainer
    private: dict[str, Any] = {}
    if config.privacy_args is not None:
        kind, settings["max_grad_norm"] = PrivateTrainer, 0.0
        private["synthetic"] = data.synthetic
        private["mechanism"] = mechanism_of(config.privacy_args, config.data_args.train, data.train_sampler)
        # The ledger is written before a checkpoint is marked as complete.
        callbacks[:0] = [SaveBelow(config.privacy_args.checkpoint_below), KeepLedger()]
    callbacks[:0] = trackers_of(config, folder)
    micro_batches = None
    if config.data_args.tokens_per_micro_batch == "auto":
        micro_batches = MicroBatches(data.collate, folder / MICRO_BATCHES)
    trainer: MultimodalTrainer = kind(
        learner,
        training_arguments(settings, hardware, folder, learner, evaluates=data.eval_dataset is not None),
        collate=data.collate,
        train_dataset=data.train_dataset,
        train_sampler=data.train_sampler,
        eval_dataset=data.eval_dataset,
        eval_sampler=data.eval_sampler,
        meter=meter,
        skip_failures=config.data_args.on_error == "skip",
        memory_advice=memory_advice(config),
        micro_batches=micro_batches,
        autocasts=bool(config.training_args["bf16"] and not settings["bf16"]),
        callbacks=callbacks,
        **private,
    )
    bar = trainer.pop_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    assert bar is not None
    trainer.add_callback(LogLines if trainer.args.disable_tqdm else ProgressBar)
    return trainer


def _refuse_unknown_layers(config: RunConfig, learner: Learner) -> None:
    """Raise `ConfigError` for layers of FSDP that the model does not have, before accelerate ends in a traceback."""
    names = fsdp_options(config).get("transformer_layer_cls_to_wrap") or ()
    classes = sorted({type(module).__name__ for module in learner.modules()})
    for name in [names] if isinstance(names, str) else names:
        if name not in classes:
            raise ConfigError(
                f"{config.origin('training_args', 'fsdp_config')}: fsdp_config: the model has no layers of the class "
                f"'{name}' in transformer_layer_cls_to_wrap{hint(name, classes)}"
            )


def trackers_of(config: RunConfig, folder: Path) -> list[Tracker]:
    """Return the trackers of a config.

    Without `run_name` the run is named after config and time, so that a resumed run has the same name; in a folder that
    the config names, which may be used again, the tracker chooses a name.
    """
    run_name = config.training_args["run_name"]
    if run_name is None and not config.training_args["output_dir"]:
        run_name = f"{config.name}-{folder.name}"
    return [
        Tracker(name, callback(), run_name, public_settings(config.training_args, vars(config.model_args)))
        for name in tracker_names(config)
        for callback in get_reporting_integration_callbacks([name])
    ]


def tracker_names(config: RunConfig) -> list[str]:
    """Return the trackers that `report_to` names."""
    value = config.training_args["report_to"]
    return [name for name in ([value] if isinstance(value, str) else value or []) if name != "none"]


def term_labels(objectives: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return for each objective its name with its weight, for plots: `box (weight 2)`, `features (weight 1 to 0.5)`."""
    labels = {}
    for name, options in objectives.items():
        weight = options.get("weight", 1.0)
        weights = [weight["start"], weight["end"]] if isinstance(weight, Mapping) else [weight]
        labels[name] = f"{name} (weight {' to '.join(f'{value:g}' for value in weights)})"
    return labels


def log_details(config: RunConfig) -> Details | None:
    """Return the function of the model's family that adds keys to `training_log.json`, or None."""
    family = FAMILIES.find(config.model_args.type, config.model_args.part)
    details: Details | None = None if family.log_details is None else family.log_details(config)
    return details


def mechanism_of(args: PrivacyArgs, train: dict[str, Any] | None, sampler: Any) -> Mechanism:
    """Build the mechanism from `privacy_args`, the config of the training split and its sampler."""
    return Mechanism(
        units=len(sampler.units),
        sample_rate=sampler.rate,
        delta=args.target_delta,
        data=digest_of_options(train),
        content=hash_of(Path(options["data_path"]) for options in datasets_in(train) if options.get("data_path")),
        **{key: vars(args)[key] for key in MECHANISM},
    )


def enable_checkpointing(learner: Learner, settings: dict[str, Any]) -> None:
    """Turn gradient checkpointing on if it is set, and remove its keys from `settings`.

    Trainer cannot do this, because the learner is not a model of transformers.
    """
    for name in CHECKPOINTING:
        # Reentrant checkpointing needs inputs with gradients and is wrong for shared KV layers.
        options = {**(settings.pop(f"{name}_kwargs", None) or {}), "use_reentrant": False}
        layers = {key: options.pop(key) for key in ("every_n_layers", "offload") if key in options}
        if settings.pop(name, False):
            learner.student.enable_checkpointing(options, **layers)


def logical_batch_size(training_args: dict[str, Any]) -> int:
    """Return the number of samples of one update on one process: batch size times accumulation steps."""
    size = training_args["per_device_train_batch_size"] * training_args["gradient_accumulation_steps"]
    return int(size)


def training_arguments(
    settings: dict[str, Any], hardware: Hardware, folder: Path, learner: Learner | None, evaluates: bool
) -> TrainingArguments:
    """Return the `training_args` of a config as `transformers.TrainingArguments`, with fixed values for this trainer.

    One item of the loader is a logical batch, so accumulation is 1 and the batch size is the product of both. `learner`
    is None before the model is loaded.
    """
    if not evaluates and settings["eval_strategy"] != "no":
        if learner is None:  # once, because a run calls this function before and after it loads the model
            logger.info("no validation split: eval_strategy '%s' is off", settings["eval_strategy"])
        settings["eval_strategy"] = "no"
    fixed = dict(
        output_dir=str(folder),
        per_device_train_batch_size=logical_batch_size(settings),
        gradient_accumulation_steps=1,
        remove_unused_columns=False,
        label_names=[],
        report_to=[],  # `trackers_of` adds the callbacks
        logging_nan_inf_filter=False,
        ddp_broadcast_buffers=False,
        # Without an image in a piece, towers and fusion have no gradient. Heads and added tokens always have one.
        ddp_find_unused_parameters=learner is not None and trains_images(learner),
        use_liger_kernel=False,  # `run/kernels.py` applies and checks them
        bf16_full_eval=False,  # evaluation uses autocast; Trainer would leave the model on the CPU
        use_cpu=hardware.device != "cuda",
    )
    if settings["metric_for_best_model"] is not None:
        settings["greater_is_better"] = False  # all metrics are losses, and Trainer assumes scores for most names
    if settings["disable_tqdm"] is None:
        settings["disable_tqdm"] = not sys.stderr.isatty()  # no progress bars in files and pipes
    try:
        arguments = TrainingArguments(**{**settings, **fixed})
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise ConfigError(f"training_args: {error}") from error
    if arguments.fsdp_plugin_args is not None:
        # accelerate would convert inputs, gradients and losses to bf16. Autocast is on, as without FSDP.
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy()
    if arguments.n_gpu > 1:
        logger.info("one of %d GPUs is used; start with mllm launch to use all of them", arguments.n_gpu)
        arguments._n_gpu = 1  # otherwise Trainer uses DataParallel, which cannot split a Batch
    return arguments


def memory_advice(config: RunConfig) -> str:
    """Return the settings to lower after an out-of-memory error, in order, with their values in this config."""
    model, training, steps = config.model_args, config.training_args, []
    size, tokens = training["per_device_train_batch_size"], config.data_args.tokens_per_micro_batch
    if isinstance(tokens, int):  # replaces the batch size
        steps.append(f"data_args.tokens_per_micro_batch (now {tokens})")
    elif tokens is None and size > 1:  # with 'auto', micro-batches have one row already
        steps.append(
            f"training_args.per_device_train_batch_size (now {size}; raise gradient_accumulation_steps, now "
            f"{training['gradient_accumulation_steps']}, to keep the update)"
        )
    if not any(training.get(name) for name in CHECKPOINTING):
        steps.append("training_args.gradient_checkpointing (now False; turn it on)")
    if model.part is None:  # a vision model has no text
        steps.append(f"model_args.max_length (now {model.max_length})")
    family = FAMILIES.find(model.type, model.part)
    for key in family.memory_keys:
        steps.append(f"model_args.{key} (now {vars(model)[key] or 'that of the checkpoint'})")
    parts = trained_parts(model)
    if parts.whole_language:
        steps.append(f"model_args.trainable (now {model.trainable!r}; a LoRA needs no optimizer states of the weights)")
    if not model.load_in_4bit and family.cannot_quantize is None and not parts.full.keys() & {"language", "vision"}:
        replaced = " instead of load_in_8bit" if model.load_in_8bit else ""
        steps.append(f"model_args.load_in_4bit (now False; turn it on{replaced})")
    if model.lora_r and parts.has_lora:
        steps.append(f"model_args.lora_r (now {model.lora_r})")
    return "Lower, in this order: " + ", then ".join(steps)
