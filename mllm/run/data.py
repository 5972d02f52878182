"""The data of a run: its splits, and the encoded logical batches that a trainer reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mllm.config.hardware import Hardware
from mllm.config.rules.privacy import refuse_large_delta
from mllm.config.rules.sharing import IMAGE_BLOCKS
from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.dataset.builder import open_datasets
from mllm.dataset.checking import Splits as CheckedSplits
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator
from mllm.dataset.loading.poisson import PoissonSampler, units_of
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.dataset.loading.sharing import RowCollator, image_groups
from mllm.engine.builder import logical_batch_size
from mllm.engine.privacy.noise import secret_of
from mllm.engine.training_data import TrainingData
from mllm.errors import ConfigError, UserError
from mllm.models.builder.build_options import checkpoint_of
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.packing import packing
from mllm.models.language_model import LanguageModel
from mllm.predict.feature_filler import Draws
from mllm.predict.metrics import check_metrics, metric_origin
from mllm.predict.stored_features import share_of_rows
from mllm.predict.strata import check_columns, parse_columns, strata_origin
from mllm.protocols import Bundle, Collator, SampleEncoder
from mllm.run.attention import attention_of_rows

logger = logging.getLogger(__name__)
Splits = Mapping[str, SampleDataset]

TINY_UPDATES = 6
"""Maximum number of updates of a run with `--tiny`."""


def open_splits(config: RunConfig) -> CheckedSplits:
    """Return the datasets of the config by split, after a check of all their rows.

    Raises:
        ConfigError: The weights do not exist, there is no training split, or a metric cannot be computed on the test
            split.
        DataError: A file of a dataset or a row cannot be read, or a patient is in two splits.
    """
    checkpoint_of(config.model_args)
    if config.data_args.train is None:
        raise ConfigError(
            f"{config.origin('data_args', 'train')}: data_args.train is None or absent, so there are no training data: "
            "set it to a dataset, such as dict(type='VQADataset', data_path='rows.jsonl')"
        )
    training = config.training_args
    workers = training["dataloader_num_workers"]
    splits = open_datasets(config.data_args, seed=training["seed"], origin=config.origin, workers=workers)
    for name, split in splits.items():
        if not split.has_references:
            raise ConfigError(
                f"{config.origin('data_args', name)}: the rows of data_args.{name} have no answers, which a training "
                "run needs: choose another split, and predict the answers of this one with evaluate_model.py"
            )
    if "test" in splits:
        check_metrics(config.data_args.metrics, "test", splits, metric_origin(config), config.data_args.gen_kwargs)
        check_columns(parse_columns(config), "test", splits, strata_origin(config))
    elif config.data_args.metrics:
        logger.warning("%s has no effect: data_args.test is None or absent", metric_origin(config))
    if config.privacy_args is not None:
        refuse_large_delta(config, len(units_of(splits["train"], config.privacy_args.unit)))
    counts = (
        f"{name}: {len(split):,} sample{'s' * (len(split) != 1)} ({splits.reports[name]})"
        for name, split in splits.items()
    )
    logger.info("%s", ", ".join(counts))
    if skipped := splits.skipped():
        logger.warning("%d rows cannot be used and are skipped, for example %s", len(skipped), skipped[0][1])
    return splits


def limit_tiny_updates(config: RunConfig, splits: Splits) -> RunConfig:
    """Return the config with at most `TINY_UPDATES` updates, unless the command line sets their number."""
    if any(
        config.origin("training_args", key).startswith("--cfg-options") for key in ("max_steps", "num_train_epochs")
    ):
        return config
    updates = planned_updates(config, splits["train"])
    if updates <= TINY_UPDATES:
        return config
    logger.info(
        "--tiny: %d updates instead of %d; set another number with --cfg-options training_args.max_steps=N",
        TINY_UPDATES,
        updates,
    )
    return replace(config, training_args={**config.training_args, "max_steps": TINY_UPDATES})


def planned_updates(config: RunConfig, train: SampleDataset) -> int:
    """Return the number of updates of the whole training, as `transformers.Trainer` counts them."""
    training = config.training_args
    max_steps = training["max_steps"]
    if max_steps > 0:
        return int(max_steps)
    return math.ceil(training["num_train_epochs"] * updates_per_epoch(config, train))


def updates_per_epoch(config: RunConfig, train: SampleDataset) -> int:
    """Return the number of updates of an epoch."""
    return len(_private_sampler(config, train, secret=b"") if config.privacy_args else _plain_sampler(config, train))


def training_draws(config: RunConfig, train: SampleDataset, updates: int) -> Draws:
    """Return the samples that this process reads in `updates` updates, each once, as dataset, row and epoch.

    They are all its rows in runs of an epoch or more, and in private runs, whose draws are secret.
    """
    if config.privacy_args is not None or updates >= len(_plain_sampler(config, train)):
        return share_of_rows(train)
    sampler = _shuffled_sampler(config, train)
    return [(train, draw.index, draw.epoch) for update in islice(sampler, updates) for draw in update]


def scale_measures(config: RunConfig, bundle: Bundle, train: SampleDataset) -> None:
    """Scale the measure head of the model, if there is one, by the known values of the training split."""
    if bundle.encoder.measures:
        bundle.model.fit_measures(known_measures(train, skip=config.data_args.on_error == "skip"))


def known_measures(split: SampleDataset, skip: bool = False) -> dict[str, list[float]]:
    """Return the known values of each measure in a split, without images if the dataset supports it.

    A row that cannot be read raises its `UserError`, or is left out with `skip`.
    """
    values: dict[str, list[float]] = {}
    for leaf, index in split.rows():
        try:
            measures = leaf.measures(index)
        except UserError:
            if skip:
                continue
            raise
        for name, value in measures.items():
            if not math.isnan(value):
                values.setdefault(name, []).append(value)
    return values


def prepare_data(
    config: RunConfig, hardware: Hardware, bundle: Bundle, encoder: SampleEncoder, splits: Splits
) -> TrainingData:
    """Return the training and validation split as encoded logical batches.

    `encoder` encodes the samples in the workers of the loader: the encoder of `bundle`, or one that also encodes for a
    teacher.
    """
    privacy = config.privacy_args
    collate = build_collator(config, hardware, bundle, encoder)
    train, validation = splits["train"], splits.get("validation")
    synthetic = None
    if privacy is None:
        sampler: Any = _shuffled_sampler(config, train)
    else:
        sampler = _private_sampler(config, train, _shared_secret(privacy.test_noise_seed))
        synthetic = [bundle.encoder.encode(sample) for sample in bundle.encoder.synthetic(privacy.physical_batch_size)]
    return TrainingData(
        collate=collate,
        train_dataset=EncodedDataset(train, encoder.encode, "train"),
        train_sampler=sampler,
        eval_dataset=None if validation is None else EncodedDataset(validation, encoder.encode, "validation"),
        eval_sampler=None if validation is None else _ordered_sampler(config, validation),
        synthetic=synthetic,
    )


def build_collator(config: RunConfig, hardware: Hardware, bundle: Bundle, encoder: SampleEncoder) -> Collator:
    """Return the function that combines the samples of an update."""
    size, tokens = config.training_args["per_device_train_batch_size"], config.data_args.tokens_per_micro_batch
    most = None if config.privacy_args is None else config.privacy_args.physical_batch_size
    size = most or size
    if tokens == "auto":
        # Memory that runs out on a CPU usually ends the process, so the first try must not be too large there.
        size, tokens = logical_batch_size(config.training_args) if hardware.device == "cuda" else size, None
    if config.data_args.share_images or config.data_args.packing:
        assert isinstance(bundle.model, LanguageModel)
        is_block = bundle.model.pretrained.config.model_type in IMAGE_BLOCKS
        bundle.model.share_tokens(is_block, attention_of_rows(config, hardware, bundle.model))
        pad = packing(encoder.pad)
        if config.data_args.share_images:
            assert isinstance(bundle.encoder, ChatEncoder)
            bundle.encoder.shares_images = True
            pad = bundle.encoder.pad_shared
        return RowCollator(pad, samples_per_piece=size, tokens_per_piece=tokens, max_samples=most)
    return LogicalCollator(encoder.pad, samples_per_piece=size, tokens_per_piece=tokens)


def _shuffled_sampler(config: RunConfig, train: SampleDataset) -> LogicalBatchSampler:
    """Return the sampler of the training split, which shuffles images if questions share them."""
    return _plain_sampler(config, train, image_groups(train) if config.data_args.share_images else None)


def _plain_sampler(config: RunConfig, train: SampleDataset, groups: np.ndarray | None = None) -> LogicalBatchSampler:
    """Return the sampler of the training split without reading its rows."""
    return LogicalBatchSampler(
        len(train),
        logical_batch_size(config.training_args),
        shuffle=True,
        drop_last=config.training_args["dataloader_drop_last"],
        seed=sampler_seed(config),
        rank=PartialState().process_index,
        world=PartialState().num_processes,
        groups=groups,
    )


def _ordered_sampler(config: RunConfig, validation: SampleDataset) -> LogicalBatchSampler:
    """Return the sampler of the validation split."""
    size = config.training_args["per_device_eval_batch_size"]
    state, seed = PartialState(), sampler_seed(config)
    return LogicalBatchSampler(
        len(validation), size, shuffle=False, seed=seed, rank=state.process_index, world=state.num_processes
    )


def sampler_seed(config: RunConfig) -> int:
    """Return the seed of the order of the samples: `data_seed`, or `seed`."""
    seed = config.training_args["data_seed"]
    return int(config.training_args["seed"] if seed is None else seed)


def _private_sampler(config: RunConfig, train: SampleDataset, secret: bytes) -> PoissonSampler:
    """Return the Poisson sampler of a private run, which draws the same units on all processes."""
    privacy, state = config.privacy_args, PartialState()
    assert privacy is not None
    units = units_of(train, privacy.unit)
    return PoissonSampler(
        units,
        min(1.0, logical_batch_size(config.training_args) * state.num_processes / len(units)),
        secret=secret,
        rank=state.process_index,
        world=state.num_processes,
        max_samples=privacy.max_records_per_patient,
    )


def _shared_secret(test_seed: int | None) -> bytes:
    """Return the secret of the draws, which the first process sends to the others."""
    secret: list[Any] = [secret_of(test_seed)]
    if PartialState().num_processes > 1:
        broadcast_object_list(secret)
    return bytes(secret[0])
