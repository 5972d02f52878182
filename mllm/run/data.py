"""What a trainer is given of a config's splits: encoded samples, dealt as logical batches."""

from __future__ import annotations

import math
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator
from mllm.dataset.loading.poisson import PoissonSampler, units_of
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.engine.builder import logical_batch_size
from mllm.engine.learner import Learner
from mllm.engine.privacy.noise import secret_of
from mllm.errors import UserError
from mllm.run.distill import fit_objectives, teaching_encoder
from mllm.structures import Bundle


def prepare_data(
    config: RunConfig,
    bundle: Bundle,
    teacher: Bundle | None,
    learner: Learner,
    splits: dict[str, SampleDataset],
) -> dict[str, Any]:
    """What the trainer is given: splits that are encoded in the loader's workers and dealt as logical batches.

    A head that reads measures is told their mean and spread in the training split.
    """
    state, training, privacy = PartialState(), config.training_args, config.privacy_args
    if bundle.encoder.measures:
        bundle.model.fit_measures(known_measures(splits["train"], skip=config.data_args.on_error == "skip"))
    encoder = teaching_encoder(config, learner, bundle, teacher, splits)
    fit_objectives(learner, encoder, splits["train"])
    size = training["per_device_train_batch_size"]
    collate = LogicalCollator(
        encoder.pad,
        samples_per_piece=size if privacy is None else privacy.physical_batch_size,
        tokens_per_piece=config.data_args.tokens_per_micro_batch,
        tokens_per_row=config.model_args.max_length if config.data_args.packing else None,
    )
    seed = training["data_seed"]
    seed = training["seed"] if seed is None else seed
    dealt = dict(rank=state.process_index, world=state.num_processes, seed=seed)
    given: dict[str, Any] = {"collate": collate}
    for name, prefix in (("train", "train"), ("validation", "eval")):
        if name in splits:
            is_training = name == "train"
            size = logical_batch_size(training) if is_training else training["per_device_eval_batch_size"]
            given[f"{prefix}_dataset"] = EncodedDataset(splits[name], encoder.encode)
            given[f"{prefix}_sampler"] = LogicalBatchSampler(
                len(splits[name]),
                size,
                shuffle=is_training,
                drop_last=is_training and training["dataloader_drop_last"],
                **dealt,
            )
    if privacy is not None:
        given |= private_data(config, bundle, splits["train"])
    return given


def known_measures(split: SampleDataset, skip: bool = False) -> dict[str, list[float]]:
    """The known values of each measure in a split; reads no image where a dataset tells them without.

    Raises the `UserError` of a row that cannot be read, unless such rows are to be skipped.
    """
    known: dict[str, list[float]] = {}
    for leaf, index in split.rows():
        try:
            measures = leaf.measures(index)
        except UserError:
            if skip:
                continue
            raise
        for name, value in measures.items():
            if not math.isnan(value):
                known.setdefault(name, []).append(value)
    return known


def private_data(config: RunConfig, bundle: Bundle, train: SampleDataset) -> dict[str, Any]:
    """A sampler that draws units by chance, alike on all processes and secretly; and samples that are not the data."""
    privacy, state = config.privacy_args, PartialState()
    assert privacy is not None
    secret: list[Any] = [secret_of(privacy.test_noise_seed)]
    if state.num_processes > 1:
        broadcast_object_list(secret)
    units = units_of(train, privacy.unit)
    sampler = PoissonSampler(
        units,
        min(1.0, logical_batch_size(config.training_args) * state.num_processes / len(units)),
        secret=secret[0],
        rank=state.process_index,
        world=state.num_processes,
        max_samples=privacy.max_records_per_patient,
    )
    samples = bundle.encoder.synthetic(privacy.physical_batch_size)
    return {"train_sampler": sampler, "synthetic": [bundle.encoder.encode(sample) for sample in samples]}
