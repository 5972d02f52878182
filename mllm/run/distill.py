"""A teacher beside the student: loaded, asked for every image once where it may be, and then dropped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from mllm.config.hardware import Hardware
from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.engine.feature_cache import CachedTeacher, FeatureCache, fingerprint
from mllm.engine.learner import Learner
from mllm.errors import DataError, UserError
from mllm.models.builder.builder import load_pretrained
from mllm.models.generation.generate import evaluating
from mllm.objectives.features import FeatureMatch
from mllm.structures import Batch, Bundle, Encoded, Sample, SampleEncoder

logger = logging.getLogger(__name__)

MEASURED = 64
"""Samples, evenly spread over the training split, from which the means and spreads of features come."""
LOOKED_AT = 16
"""Rows, evenly spread over a split, that are read in two epochs to see whether their images change."""


def load_teacher(config: RunConfig, hardware: Hardware, student: Bundle) -> Bundle | None:
    """The frozen teacher that `distill_args` name, looking at the student's views; None where nobody teaches."""
    if config.distill_args is None:
        return None
    args = config.distill_args.teacher
    logger.info("the teacher is %s", args.model_name_or_path)
    teacher = load_pretrained(args, hardware)
    teacher.model.freeze_as_teacher()
    teacher.encoder.views = student.encoder.views
    return teacher


class TaughtEncoder:
    """Encodes a sample for the student and for the teacher."""

    def __init__(self, student: SampleEncoder, teacher: SampleEncoder) -> None:
        self.student, self.teacher = student, teacher

    def encode(self, sample: Sample) -> Encoded:
        """The sample as the student sees it, with what the teacher sees beside it."""
        return replace(self.student.encode(sample), teacher=self.teacher.encode(sample))

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """One batch for both; the teacher's labels, where it reads words, are told to the objectives."""
        batch = self.student.pad(samples, side)
        taught = self.teacher.pad([sample.teacher for sample in samples if sample.teacher is not None], side)
        labels = {"teacher_labels": taught.targets["labels"]} if "labels" in taught.targets else {}
        return replace(batch, teacher=taught.student, targets=batch.targets | labels)


class CacheReader:
    """Gives, for the teacher's pixels, what the teacher saw in them."""

    def __init__(self, cache: FeatureCache, views: Sequence[str]) -> None:
        self.cache, self.views = cache, views

    def encode(self, sample: Sample) -> Encoded:
        """The taps [V, C, g, g] of a sample's views; raises `DataError` for an image that was not looked at before."""
        kept = []
        for view in self.views:
            taps = self.cache.read(sample.images[sample.views.index(view)])
            if taps is None:
                raise DataError(
                    f"{sample.source or 'a sample'}: the view '{view}' is not in the teacher's cache: "
                    f"run again, or set distill_args.cache=False where images change from epoch to epoch"
                )
            kept.append(taps)
        return Encoded({path: torch.stack([taps[path] for taps in kept]) for path in kept[0]}, {}, length=0)

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """One batch: taps [B, V, C, g, g]."""
        names = samples[0].student
        return Batch({name: torch.stack([sample.student[name] for sample in samples]) for name in names}, {})


def teaching_encoder(
    config: RunConfig, learner: Learner, student: Bundle, teacher: Bundle | None, splits: dict[str, SampleDataset]
) -> SampleEncoder:
    """What encodes the samples of a run; where the teacher's features can be kept, it is asked now and then dropped."""
    if teacher is None or config.distill_args is None:
        return student.encoder
    used = {name: split for name, split in splits.items() if name in ("train", "validation")}
    if teacher.model.generates_text or not config.distill_args.cache:
        return TaughtEncoder(student.encoder, teacher.encoder)
    if _change(used["train"]):
        logger.info("images change from epoch to epoch (transforms), so the teacher's features cannot be kept")
        return TaughtEncoder(student.encoder, teacher.encoder)
    teacher.model.to(PartialState().device)
    told = fingerprint(teacher.model, processor=teacher.encoder.processor.to_dict(), taps=teacher.model.tapped)
    cache = FeatureCache(config.distill_args.cache_folder, told)
    fill(cache, teacher, used, skip=config.data_args.on_error == "skip")
    learner.teacher = CachedTeacher()
    teacher.model.to("meta")
    return TaughtEncoder(student.encoder, CacheReader(cache, teacher.encoder.views))


@torch.no_grad()
def fill(cache: FeatureCache, teacher: Bundle, splits: dict[str, SampleDataset], skip: bool) -> None:
    """Computes what the cache lacks of the images of some splits, each process its share; says how much it hit."""
    state = PartialState()
    found = computed = 0
    for name, split in splits.items():
        mine = list(split.rows())[state.process_index :: state.num_processes]  # also what a mixture draws later
        for leaf, index in tqdm(mine, desc=f"teacher, {name}", disable=None):
            try:
                sample = leaf.sample(index)
                encoded = teacher.encoder.encode(sample)
            except UserError:
                if skip:
                    continue
                raise
            for place, view in enumerate(teacher.encoder.views):
                image = sample.images[sample.views.index(view)]
                if cache.read(image) is not None:
                    found += 1
                    continue
                computed += 1
                taps = teacher.model(encoded.student["pixel_values"][None, place : place + 1].to(state.device)).taps
                cache.write(image, {path: tap[0, 0] for path, tap in taps.items()})
    found, computed = (sum(gather_object([count])) for count in (found, computed))
    state.wait_for_everyone()
    logger.info(
        "teacher cache in %s: %d of %d images found, %d computed; the teacher leaves the memory",
        cache.folder,
        found,
        found + computed,
        computed,
    )


@torch.no_grad()
def fit_objectives(learner: Learner, encoder: SampleEncoder, split: SampleDataset) -> None:
    """Shows each FeatureMatch that normalizes what both models see in some images of a split."""
    objectives = [one for _, one in learner.named_objectives() if isinstance(one, FeatureMatch) and one.normalize]
    if not objectives:
        return
    device = PartialState().device
    learner.to(device)
    student, teacher = [], []
    count = min(len(split), MEASURED)
    with evaluating(learner.student):
        for place in tqdm(range(count), desc="what both see", disable=None):
            try:
                sample = split.sample(place * len(split) // count)
                batch = encoder.pad([encoder.encode(sample)]).to(device)
            except UserError:
                continue  # where rows may not fail, the training says which one does
            taught = learner.run_teacher(batch.teacher)
            assert taught is not None, "the rules refuse FeatureMatch without a teacher"
            student.append(learner.student(**batch.student).taps)
            teacher.append(taught.taps)
    if not student:
        raise DataError(
            f"none of {count} rows of the training split could be read, so features cannot be normalized: mend them "
            "(data_args.on_error='raise' says what is wrong with the first)"
        )
    for objective in objectives:
        objective.fit(student, teacher)


def _change(split: SampleDataset) -> bool:
    """Whether the images of any of a split's datasets differ between two epochs."""
    rows = list(split.rows())
    firsts = {id(leaf): (leaf, index) for leaf, index in reversed(rows)}
    count = min(len(rows), LOOKED_AT)
    spread = [rows[place * len(rows) // count] for place in range(count)]
    for leaf, index in [*firsts.values(), *spread]:
        try:
            before, after = ([image.tobytes() for image in leaf.sample(index, epoch).images] for epoch in (0, 1))
        except UserError:
            continue
        if before != after:
            return True
    return False
