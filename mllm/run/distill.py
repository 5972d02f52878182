"""Distillation: the teacher of a run, the cache of its features, and objectives that are normalized by them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.dataset.changing_images import has_changing_images
from mllm.engine.feature_cache import CachedTeacher, FeatureCache, fingerprint
from mllm.engine.learner import Learner
from mllm.errors import DataError, UserError
from mllm.models.builder.builder import load_pretrained
from mllm.models.generation.generate import evaluating
from mllm.objectives.features import FeatureMatch
from mllm.protocols import Bundle, SampleEncoder
from mllm.structures import Batch, Encoded, Sample

logger = logging.getLogger(__name__)

FITTED_SAMPLES = 64
"""Samples of the training split, evenly spaced, from which the statistics of features are computed."""


def load_teacher(config: RunConfig, hardware: Hardware, student: Bundle) -> Bundle | None:
    """Return the frozen teacher, which reads the views of the student; None without `distill_args`."""
    if config.distill_args is None:
        return None
    args = config.distill_args.teacher
    logger.info("the teacher is %s", args.model_name_or_path)
    teacher = load_pretrained(args, hardware)
    teacher.model.freeze_as_teacher()
    teacher.encoder.views = student.encoder.views
    return teacher


def cache_features(
    config: RunConfig, teacher: Bundle | None, splits: Mapping[str, SampleDataset]
) -> FeatureCache | None:
    """Compute and store the teacher's features of all training and validation images that the cache does not have.

    Returns None if the teacher has to run in every update: it generates text, the cache is turned off, or images
    change between epochs; and without a teacher.
    """
    if teacher is None or config.distill_args is None or teacher.model.generates_text or not config.distill_args.cache:
        return None
    if has_changing_images(splits["train"]):
        logger.info("images change between epochs (transforms), so the teacher's features are not cached")
        return None
    teacher.model.to(PartialState().device)
    key = fingerprint(teacher.model, processor=teacher.encoder.processor.to_dict(), taps=teacher.model.tapped)
    cache = FeatureCache(config.distill_args.cache_folder, key)
    read_in_training = {name: split for name, split in splits.items() if name in ("train", "validation")}
    fill_cache(cache, teacher, read_in_training, skip=config.data_args.on_error == "skip")
    return cache


def release_teacher(learner: Learner, teacher: Bundle) -> None:
    """Replace the teacher of the learner by a reader of cached features, and free the memory of its weights."""
    learner.teacher = CachedTeacher()
    teacher.model.to("meta")


def training_encoder(student: Bundle, teacher: Bundle | None, cache: FeatureCache | None) -> SampleEncoder:
    """Return the encoder of a run: that of the student, with that of the teacher or its cached features."""
    if teacher is None:
        return student.encoder
    return PairEncoder(student.encoder, teacher.encoder if cache is None else CacheReader(cache, teacher.encoder.views))


class PairEncoder:
    """Encoder of samples for a student and a teacher."""

    def __init__(self, student: SampleEncoder, teacher: SampleEncoder) -> None:
        self.student, self.teacher = student, teacher

    def encode(self, sample: Sample) -> Encoded:
        """Encode a sample for the student, with the encoding for the teacher in `teacher`."""
        return replace(self.student.encode(sample), teacher=self.teacher.encode(sample))

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """Return one batch for both. The targets include the teacher's labels as `teacher_labels` if it reads text."""
        batch = self.student.pad(samples, side)
        teacher = self.teacher.pad([sample.teacher for sample in samples if sample.teacher is not None], side)
        labels = {"teacher_labels": teacher.targets["labels"]} if "labels" in teacher.targets else {}
        return replace(batch, teacher=teacher.student, targets=batch.targets | labels)


class CacheReader:
    """Encoder that returns cached features of a teacher instead of pixels."""

    def __init__(self, cache: FeatureCache, views: Sequence[str]) -> None:
        self.cache, self.views = cache, views

    def encode(self, sample: Sample) -> Encoded:
        """Return the taps [V, C, g, g] of the views of a sample. Raise `DataError` for an image without features."""
        cached = []
        for view in self.views:
            taps = self.cache.read([sample.images[sample.views.index(view)]])
            if taps is None:
                raise DataError(
                    f"{sample.source or 'a sample'}: the view '{view}' is not in the teacher's cache: "
                    f"run again, or set distill_args.cache=False if images change between epochs"
                )
            cached.append(taps)
        return Encoded({path: torch.stack([taps[path] for taps in cached]) for path in cached[0]}, {}, length=0)

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """Return one batch of taps [B, V, C, g, g]."""
        names = samples[0].student
        return Batch({name: torch.stack([sample.student[name] for sample in samples]) for name in names}, {})


@torch.no_grad()
def fill_cache(cache: FeatureCache, teacher: Bundle, splits: Mapping[str, SampleDataset], skip: bool) -> None:
    """Compute the missing features of the images of some splits, a share on each process, and log the counts.

    A row that cannot be read raises its `UserError`, or is left out with `skip`.
    """
    state = PartialState()
    hits = misses = 0
    for name, split in splits.items():
        rows = list(split.rows())[state.process_index :: state.num_processes]  # includes all rows of a mixture
        for leaf, index in tqdm(rows, desc=f"teacher, {name}", disable=None):
            try:
                sample = leaf.sample(index)
                encoded = teacher.encoder.encode(sample)
            except UserError:
                if skip:
                    continue
                raise
            for position, view in enumerate(teacher.encoder.views):
                image = sample.images[sample.views.index(view)]
                if cache.read([image]) is not None:
                    hits += 1
                    continue
                misses += 1
                pixels = encoded.student["pixel_values"][None, position : position + 1]
                taps = teacher.model(pixels.to(state.device)).taps
                cache.write([image], {path: tap[0, 0] for path, tap in taps.items()})
    hits, misses = (sum(gather_object([count])) for count in (hits, misses))
    state.wait_for_everyone()
    logger.info(
        "teacher cache in %s: %d of %d images found, %d computed; the teacher is unloaded",
        cache.folder,
        hits,
        hits + misses,
        misses,
    )


@torch.no_grad()
def fit_objectives(learner: Learner, encoder: SampleEncoder, train: SampleDataset) -> None:
    """Fit each FeatureMatch with `normalize` to the features of both models on `FITTED_SAMPLES` training samples."""
    objectives = [
        objective
        for _, objective in learner.named_objectives()
        if isinstance(objective, FeatureMatch) and objective.normalize
    ]
    if not objectives:
        return
    device = PartialState().device
    learner.to(device)
    student, teacher = [], []
    count = min(len(train), FITTED_SAMPLES)
    with evaluating(learner.student):
        for number in tqdm(range(count), desc="features", disable=None):
            try:
                sample = train.sample(number * len(train) // count)
                batch = encoder.pad([encoder.encode(sample)]).to(device)
            except UserError:
                continue  # the training reports it, unless on_error='skip'
            outputs = learner.run_teacher(batch.teacher)
            assert outputs is not None, "the rules refuse FeatureMatch without a teacher"
            student.append(learner.student(**batch.student).taps)
            teacher.append(outputs.taps)
    if not student:
        raise DataError(
            f"none of {count} rows of the training split could be read, so features cannot be normalized: correct the "
            "rows (data_args.on_error='raise' shows the error of the first one)"
        )
    for objective in objectives:
        objective.fit(student, teacher)
