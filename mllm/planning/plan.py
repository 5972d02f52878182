"""Plan of a training run: memory and operations of one update, from its config."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.config.rules.sharding import fsdp_options, stage_of, zero_options
from mllm.config.schema import RunConfig
from mllm.engine.builder import build_learner, prepare_trainer
from mllm.engine.feature_cache import CachedTeacher
from mllm.engine.trainer import MultimodalTrainer
from mllm.engine.training_data import TrainingData
from mllm.errors import ConfigError
from mllm.models.backbone.kernels import planned_for
from mllm.models.backbone.planned import PLANNED
from mllm.models.builder.builder import load_pretrained
from mllm.objectives.features import FeatureMatch
from mllm.planning.batch import (
    Data,
    faked,
    micro_batch,
    open_data,
    stores_features,
    widest_sample,
    with_stored_features,
)
from mllm.planning.checkpoint import without_weights
from mllm.planning.fake import FakeExecution
from mllm.planning.gathered import gathered_bytes
from mllm.planning.step import Update, count_weights, run_update
from mllm.protocols import Bundle
from mllm.run.data import build_collator
from mllm.run.distill import load_teacher, training_encoder
from mllm.run.prepare import with_tiny_parts, write_named_tiny
from mllm.structures import Batch, Encoded

FLOATS = 4
"""Bytes of a number in fp32."""


@dataclass(frozen=True)
class Plan:
    """Memory and operations of an update of a config."""

    config: RunConfig
    """The config after the rules, for the hardware that is planned for."""
    update: Update
    samples: int
    """Number of samples of a micro-batch."""
    tokens: int
    """Number of tokens of a micro-batch, padding included; 0 for a model that reads images only."""
    pieces: int
    """Number of micro-batches of an update on one process."""
    images: int
    """Number of images of a sample."""
    rows: int | None
    """Number of rows of the training split; None: the data are not on this machine, or the run is private."""
    per_sample_gradients: int
    """Bytes of the gradients of each sample in a private run."""
    stores_features: bool
    """True if the run computes the features of its images before its first update."""
    shards: str
    """Engine that divides states over processes: '', 'zero1', 'zero2', 'zero3' or 'fsdp'."""
    gathered: int = 0
    """Most bytes of weights that FSDP or ZeRO-3 gathers at a time, in addition to the shard of a process."""

    @property
    def peak(self) -> int:
        """Return the peak memory of one process in bytes."""
        return self.update.peak + self.per_sample_gradients

    @property
    def flops_per_sample(self) -> float:
        """Return the floating-point operations of a sample, those of recomputed activations included."""
        return self.update.flops / self.samples


def plan(
    path: str,
    overrides: Sequence[str],
    hardware: Hardware,
    changes: Mapping[str, Any] | None = None,
    *,
    tiny: bool = False,
) -> Plan:
    """Return the plan of a config on some hardware. No weights are read.

    Args:
        path: File of the config.
        overrides: Overrides of the command line.
        hardware: The hardware that is planned for.
        changes: Values of config keys by dotted path, which replace those of the config.
        tiny: Plan the tiny checkpoints of `--tiny`.

    Raises:
        ConfigError: The config is invalid, cannot run on the hardware, or its checkpoint is unknown.
    """
    config = _read(path, overrides, tiny)
    with tempfile.TemporaryDirectory() as temporary, _quiet():
        return plan_config(config, hardware, Path(temporary), changes or {})


def check_changes(
    path: str, overrides: Sequence[str], hardware: Hardware, changes: Mapping[str, Any], *, tiny: bool = False
) -> None:
    """Apply the rules to a config with changes, without a plan; see `plan`. Raises `UserError` if they refuse it."""
    config = _read(path, overrides, tiny)
    with tempfile.TemporaryDirectory() as temporary, _quiet():
        _ruled(config, hardware, Path(temporary), changes)


def _read(path: str, overrides: Sequence[str], tiny: bool) -> RunConfig:
    config = read_config(path, overrides)
    if tiny:
        return with_tiny_parts(config)
    write_named_tiny(config)
    return config


def _ruled(
    config: RunConfig, hardware: Hardware, folder: Path, changes: Mapping[str, Any]
) -> tuple[RunConfig, Hardware]:
    """Return a config with changes, and the hardware, after the rules."""
    alone = dict.fromkeys(("training_args.deepspeed", "training_args.fsdp", "training_args.fsdp_config"))
    config = config.replaced(**changes, **alone)
    config = config.replaced(model_args=without_weights(config.model_args, folder / "student"))
    if config.distill_args is not None:
        teacher = without_weights(config.distill_args.teacher, folder / "teacher")
        config = config.replaced(**{"distill_args.teacher": teacher})
    return apply_rules(config, hardware)


def plan_config(config: RunConfig, hardware: Hardware, folder: Path, changes: Mapping[str, Any]) -> Plan:
    """Return the plan of a config. Files of checkpoints without weights are written to `folder`."""
    shards, options = sharding(config), sharding_options(config)
    config, hardware = _ruled(config, hardware, folder, changes)
    if config.data_args.tokens_per_micro_batch == "auto":
        config = config.replaced(**{"data_args.tokens_per_micro_batch": None})
    try:
        with planned_for(hardware.device), FakeExecution() as mode:
            prepared = prepare(config, replace(hardware, device=PLANNED), folder / "run", mode)
            count_weights(prepared.trainer.learner, mode)
            gathered = gathered_bytes(prepared.trainer.learner, shards, options)
            update = run_update(prepared.trainer, prepared.piece, prepared.pieces, mode)
    except (RuntimeError, NotImplementedError) as error:
        # The code of some models reads numbers that a plan does not have.
        first = str(error).partition("\n")[0]
        raise ConfigError(
            f"{config.name} cannot be planned, because the code of its model reads numbers that a plan does not have "
            f"({first}): measure it with training_args.max_steps=1"
        ) from error
    private = config.privacy_args is not None
    piece, data = prepared.piece, prepared.data
    return Plan(
        config=config,
        update=update,
        samples=piece.samples,
        tokens=prepared.tokens,
        pieces=prepared.pieces,
        images=prepared.images,
        rows=data.rows,
        per_sample_gradients=piece.samples * update.trained * FLOATS if private else 0,
        stores_features=prepared.stores_features,
        shards=shards,
        gathered=gathered,
    )


@dataclass(frozen=True)
class Prepared:
    """A trainer and a micro-batch of the greatest length."""

    trainer: MultimodalTrainer
    piece: Batch
    pieces: int
    """Number of micro-batches of an update."""
    tokens: int
    """Number of tokens of the micro-batch, padding included; 0 for a model that reads images only."""
    images: int
    """Number of images of a sample."""
    data: Data
    stores_features: bool


def prepare(config: RunConfig, hardware: Hardware, folder: Path, mode: FakeExecution | None) -> Prepared:
    """Return the trainer of a config, and a micro-batch of the greatest length.

    Args:
        config: The config after the rules.
        hardware: The hardware after the rules.
        folder: Run folder of the trainer.
        mode: The context in which tensors are fake, which is active; None: the weights are loaded.
    """
    suspended = nullcontext if mode is None else mode.suspended
    with suspended():
        data = open_data(config)
    bundle = load_pretrained(config.model_args, hardware)
    teacher = load_teacher(config, hardware, bundle)
    learner = build_learner(config, bundle, teacher)
    for _, objective in learner.named_objectives():
        if isinstance(objective, FeatureMatch):
            objective.normalize = False  # its statistics come from the data; they are small
    encoder: Any = training_encoder(bundle, teacher, None)
    collate = build_collator(config, hardware, bundle, encoder)
    with suspended():
        encoded = encoder.encode(widest_sample(data, bundle, config.model_args.heads))
    if mode is not None:
        encoded = faked(encoded, mode.fake_of)
    if teacher is not None and _caches_teacher(config, teacher):
        assert encoded.teacher is not None
        encoded = replace(encoded, teacher=_cached(encoded.teacher, teacher))
        learner.teacher, encoder.teacher = CachedTeacher(), TapsEncoder()
    del teacher
    features = stores_features(config, bundle, data)
    if features:
        encoded = with_stored_features(encoded, bundle)
    batch, pieces = micro_batch(encoded, config, collate)
    splits = TrainingData(collate, [encoded], _Sampler())  # type: ignore[arg-type]
    return Prepared(
        trainer=prepare_trainer(_for_trainer(config), hardware, learner, folder, splits),
        piece=batch.pieces[0],
        pieces=pieces,
        tokens=batch.padded_tokens if bundle.model.generates_text else 0,
        images=len(encoded.frames),
        data=data,
        stores_features=features,
    )


def _caches_teacher(config: RunConfig, teacher: Bundle) -> bool:
    assert config.distill_args is not None
    return config.distill_args.cache and not teacher.model.generates_text


def _cached(encoded: Encoded, teacher: Bundle) -> Encoded:
    """Return the taps of a teacher for a sample, as its cache returns them."""
    taps = teacher.model(**teacher.encoder.pad([encoded]).student).taps
    return Encoded({path: tap[0].detach() for path, tap in taps.items()}, {}, length=0)


class TapsEncoder:
    """Encoder of cached taps."""

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """Return one batch of taps."""
        names = samples[0].student
        return Batch({name: torch.stack([sample.student[name] for sample in samples]) for name in names}, {})


class _Sampler:
    """Sampler of a split that is never read."""

    world, rank = 1, 0

    def __len__(self) -> int:
        return 1

    def set_epoch(self, epoch: int) -> None:
        """Do nothing."""


def _for_trainer(config: RunConfig) -> RunConfig:
    """Return a config without parts that do not influence memory and that read or write files."""
    values: dict[str, Any] = dict(
        tf32=None, report_to=[], dataloader_pin_memory=False, eval_strategy="no", save_strategy="no"
    )
    values |= dict(load_best_model_at_end=False, early_stopping_patience=None)
    changes: dict[str, Any] = {f"training_args.{key}": value for key, value in values.items()}
    return config.replaced(**changes, privacy_args=None, **{"data_args.tokens_per_micro_batch": None})


@contextmanager
def _quiet() -> Iterator[None]:
    """Show errors only: a plan repeats the messages of a run."""
    logger = logging.getLogger("mllm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # its errors are raised as well
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers about fake tensors
            yield
    finally:
        logger.setLevel(level)


def sharding(config: RunConfig) -> str:
    """Return the engine that divides states over processes: '', 'zero1', 'zero2', 'zero3' or 'fsdp'."""
    if config.training_args["fsdp"]:
        return "fsdp"
    value = config.training_args["deepspeed"]
    if not value:
        return ""
    stage = stage_of(value)
    return f"zero{stage}" if stage != "0" else ""


def sharding_options(config: RunConfig) -> Mapping[str, Any]:
    """Return the settings of FSDP, or those of ZeRO; empty without such an engine."""
    if config.training_args["fsdp"]:
        return fsdp_options(config)
    return zero_options(config.training_args["deepspeed"])
