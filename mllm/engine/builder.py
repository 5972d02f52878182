"""From a config to a learner and a trainer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mllm.config.hardware import Hardware
from mllm.config.rules.privacy import datasets_in
from mllm.config.schema import PrivacyArgs, RunConfig
from mllm.engine.callbacks import Checkpoints, Details, Epochs, Guard, Lines, Progress, RunLog, use_tensorboard_folder
from mllm.engine.early_stopping import EarlyStopping
from mllm.engine.learner import Learner, Reduction
from mllm.engine.meter import Meter
from mllm.engine.privacy.mechanism import Mechanism, hash_of
from mllm.engine.private_trainer import KeepLedger, PrivateTrainer, SaveBelow
from mllm.engine.trainer import MultimodalTrainer
from mllm.engine.training_data import TrainingData
from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.objectives.base import Objective
from mllm.registry import OBJECTIVES, TRAINERS, build
from mllm.structures import Bundle

logger = logging.getLogger(__name__)

CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")
"""Two names of one thing: transformers is renaming it."""

DEFAULT_TRAINER = "default"
"""Entry of TRAINERS for model types without an entry of their own."""
MECHANISM = (
    *("clip_norm", "noise_multiplier", "target_epsilon", "accountant"),
    *("unit", "clipping", "secure_mode", "test_noise_seed"),
)
"""The fields of `privacy_args` that a mechanism has under the same name."""


def build_learner(config: RunConfig, bundle: Bundle, teacher: Bundle | None = None) -> Learner:
    """The student with the objectives that the config names, and who teaches it."""
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
    """A MultimodalTrainer with the callbacks of every run; a PrivateTrainer where the config has `privacy_args`."""
    wanted = dict(config.training_args)
    enable_checkpointing(learner, wanted)
    limit = wanted.pop("save_total_limit")
    patience, threshold = wanted.pop("early_stopping_patience"), wanted.pop("early_stopping_threshold")
    use_tensorboard_folder(folder)
    meter = Meter()
    log = RunLog({"config": config.name}, meter, log_details(config))
    callbacks: list[Any] = [Guard(), Checkpoints(limit), log, Epochs(data.train_sampler)]
    if patience is not None:
        callbacks.append(EarlyStopping(patience, threshold))
    kind: Any = MultimodalTrainer
    private: dict[str, Any] = {}
    if config.privacy_args is not None:
        kind, wanted["max_grad_norm"] = PrivateTrainer, 0.0
        private["synthetic"] = data.synthetic
        private["mechanism"] = mechanism_of(config.privacy_args, config.data_args.train, data.train_sampler)
        # The ledger is written before a checkpoint is marked complete.
        callbacks[1:1] = [SaveBelow(config.privacy_args.checkpoint_below), KeepLedger()]
    trainer: MultimodalTrainer = kind(
        learner,
        training_arguments(wanted, hardware, folder, learner, evaluates=data.eval_dataset is not None),
        collate=data.collate,
        train_dataset=data.train_dataset,
        train_sampler=data.train_sampler,
        eval_dataset=data.eval_dataset,
        eval_sampler=data.eval_sampler,
        meter=meter,
        skip_failures=config.data_args.on_error == "skip",
        memory_advice=memory_advice(config),
        callbacks=callbacks,
        **private,
    )
    bar = trainer.pop_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    assert bar is not None
    trainer.add_callback(Lines if trainer.args.disable_tqdm else Progress)
    return trainer


def log_details(config: RunConfig) -> Details | None:
    """Return the function of the model's family that adds keys to `training_log.json`, or None."""
    family = FAMILIES.find(config.model_args.type).part(config.model_args.part)
    details: Details | None = None if family.log_details is None else family.log_details(config)
    return details


def mechanism_of(args: PrivacyArgs, train: dict[str, Any] | None, sampler: Any) -> Mechanism:
    """What every update does, from `privacy_args`, the training split's config and the sampler that draws from it."""
    return Mechanism(
        units=len(sampler.units),
        sample_rate=sampler.rate,
        delta=args.target_delta,
        data=repr(train),
        content=hash_of(Path(options["data_path"]) for options in datasets_in(train) if options.get("data_path")),
        **{key: vars(args)[key] for key in MECHANISM},
    )


def enable_checkpointing(learner: Learner, wanted: dict[str, Any]) -> None:
    """Turns gradient checkpointing on inside the learner where it is wanted, and takes its keys out of `wanted`.

    Trainer itself would ask the learner, which is no model of transformers.
    """
    for name in CHECKPOINTING:
        # Reentrant checkpointing needs inputs with gradients and is wrong for shared KV layers.
        options = {**(wanted.pop(f"{name}_kwargs", None) or {}), "use_reentrant": False}
        layers = {key: options.pop(key) for key in ("every_n_layers", "offload") if key in options}
        if wanted.pop(name, False):
            learner.student.enable_checkpointing(options, **layers)


def logical_batch_size(training_args: dict[str, Any]) -> int:
    """The samples of one update on one process: batch size times accumulation steps."""
    size = training_args["per_device_train_batch_size"] * training_args["gradient_accumulation_steps"]
    return int(size)


def training_arguments(
    wanted: dict[str, Any], hardware: Hardware, folder: Path, learner: Learner, evaluates: bool
) -> TrainingArguments:
    """The config's `training_args` as transformers' own, with what this trainer decides for itself.

    The logical batch is one loader item here, so accumulation is 1 and the batch size the product of both.
    """
    if not evaluates and wanted["eval_strategy"] != "no":
        logger.info("no validation split: eval_strategy '%s' is off", wanted["eval_strategy"])
        wanted["eval_strategy"] = "no"
    decided = dict(
        output_dir=str(folder),
        per_device_train_batch_size=logical_batch_size(wanted),
        gradient_accumulation_steps=1,
        remove_unused_columns=False,
        label_names=[],
        logging_nan_inf_filter=False,
        ddp_broadcast_buffers=False,
        # A piece may hold no image, and then towers and fusion have no gradient; heads and added rows always have.
        ddp_find_unused_parameters=any(
            map(learner.student.trains, (learner.student.towers.keys() | {"fusion"}) - {"language"})
        ),
        bf16_full_eval=False,  # evaluation runs under the same autocast; Trainer would leave the model on the CPU
        use_cpu=hardware.device == "cpu",
    )
    if wanted["disable_tqdm"] is None:
        wanted["disable_tqdm"] = not sys.stderr.isatty()  # a file or a pipe gets lines without progress bars
    try:
        arguments = TrainingArguments(**{**wanted, **decided})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"training_args: {error}") from error
    if arguments.n_gpu > 1:
        logger.info("one of %d cards is used; start with torchrun to use all of them", arguments.n_gpu)
        arguments._n_gpu = 1  # else Trainer would wrap the learner in DataParallel, which cannot take a Batch apart
    return arguments


def memory_advice(config: RunConfig) -> str:
    """What to lower when memory is short, in order, with the values of this config."""
    model, training, steps = config.model_args, config.training_args, []
    size = training["per_device_train_batch_size"]
    if config.data_args.tokens_per_micro_batch:  # takes the place of the batch size
        steps.append(f"data_args.tokens_per_micro_batch (now {config.data_args.tokens_per_micro_batch})")
    elif size > 1:
        steps.append(
            f"training_args.per_device_train_batch_size (now {size}; raise gradient_accumulation_steps, now "
            f"{training['gradient_accumulation_steps']}, to keep the update)"
        )
    if not any(training.get(name) for name in CHECKPOINTING):
        steps.append("training_args.gradient_checkpointing (now False; turn it on)")
    if model.part is None:  # what only sees has no words, and images of the checkpoint's own size
        steps.append(f"model_args.max_length (now {model.max_length})")
    family = FAMILIES.find(model.type).part(model.part)
    for key in family.memory_keys:
        steps.append(f"model_args.{key} (now {vars(model)[key] or 'the checkpoint’s own'})")
    if not model.load_in_4bit and family.cannot_quantize is None:
        instead = " in the place of load_in_8bit" if model.load_in_8bit else ""
        steps.append(f"model_args.load_in_4bit (now False; turn it on{instead})")
    if model.lora_r:
        steps.append(f"model_args.lora_r (now {model.lora_r})")
    return "Lower, in this order: " + ", then ".join(steps)
