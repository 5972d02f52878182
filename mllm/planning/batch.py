"""Micro-batch of a plan: samples of the greatest length, with images as in the data where these are on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mllm.config.schema import RunConfig
from mllm.dataset.builder import build_dataset
from mllm.engine.builder import logical_batch_size
from mllm.errors import UserError
from mllm.models.encoding.image_features import compute_features, with_features
from mllm.models.encoding.seq2seq import Seq2SeqEncoder
from mllm.models.language_model import LanguageModel
from mllm.predict.stored_features import is_possible
from mllm.protocols import Bundle, Collator
from mllm.structures import BOX, IMAGE, Encoded, LogicalBatch, Mark, Sample, Turn

SIDE = 1024
"""Side in pixels of an image that stands for those of absent data."""
ROWS = 8
"""Number of rows of the data that are read for the number and the size of their images."""
WORD = "a "
"""Text of at least one token. Longer words have several in small vocabularies, and the processor reads them all."""


@dataclass(frozen=True)
class Data:
    """The training split as far as a plan needs it."""

    split: Any
    """The dataset; None: its files are not on this machine, or the run is private."""
    sample: Sample | None
    """The row with most images, and of these the largest."""

    @property
    def rows(self) -> int | None:
        """Return the number of rows, or None."""
        return None if self.split is None else len(self.split)


def open_data(config: RunConfig) -> Data:
    """Open the training split and read some rows. A private run reads none."""
    train = config.data_args.train
    if train is None or config.privacy_args is not None:
        return Data(None, None)
    try:
        split = build_dataset(train, seed=config.training_args["seed"], where="data_args.train")
        count = len(split)
    except UserError:
        return Data(None, None)
    samples = []
    for row in sorted({index * count // ROWS for index in range(ROWS)} if count else ()):
        try:
            samples.append(split.sample(row))
        except UserError:  # a run reports or skips it
            continue
    if not samples:
        return Data(None, None)
    return Data(split, max(samples, key=lambda s: (len(s.images), sum(i.width * i.height for i in s.images))))


def widest_sample(data: Data, bundle: Bundle, heads: Mapping[str, Any]) -> Sample:
    """Return a sample whose text exceeds any `max_length`."""
    encoder = bundle.encoder
    if encoder.views:
        return encoder.synthetic(1)[0] if data.sample is None else data.sample
    length = int(vars(encoder)["max_length"])
    sample = _stand_in(bundle, heads) if data.sample is None else data.sample
    filler = WORD * (length + 1)
    turns = list(sample.turns)
    turns[-1] = replace(turns[-1], text=f"{turns[-1].text} {filler}")
    if isinstance(encoder, Seq2SeqEncoder):
        turns = [turns[-1] if turn is turns[-1] else replace(turn, text=f"{turn.text} {filler}") for turn in turns]
    return replace(sample, turns=turns)


def _stand_in(bundle: Bundle, heads: Mapping[str, Any]) -> Sample:
    """Return a conversation about one image, with an object if the model has heads."""
    images = [Image.new("RGB", (SIDE, SIDE))] if bundle.encoder.image_token_ids else []
    question = Turn("user", f"{IMAGE * len(images)} What is shown here?".strip())
    if not heads:
        return Sample([question, Turn("assistant", "An answer.")], images)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[: SIDE // 2, : SIDE // 2] = True
    mark = Mark(box=(0.0, 0.0, SIDE / 2, SIDE / 2), mask=mask)
    return Sample([question, Turn("assistant", f"{BOX} is shown.", marks=((0,),))], images, marks=[mark])


def stores_features(config: RunConfig, bundle: Bundle, data: Data) -> bool:
    """Return True if the run computes the features of its images before its first update."""
    if not isinstance(bundle.model, LanguageModel) or not bundle.encoder.image_token_ids:
        return False
    return is_possible(config, bundle, cast(Any, _Unchanging()) if data.split is None else data.split)


class _Unchanging:
    """Stand-in of absent data: a split without rows, so without images that change between epochs."""

    def rows(self) -> list[Any]:
        """Return no rows."""
        return []


def with_stored_features(encoded: Encoded, bundle: Bundle) -> Encoded:
    """Return a sample with the features of its images instead of their pixels."""
    with torch.no_grad():
        batch = bundle.encoder.pad([encoded])
        features = compute_features(bundle.model.pretrained, batch.student)
    return replace(encoded, student=with_features(encoded.student, features), has_features=True)


def micro_batch(encoded: Encoded, config: RunConfig, collate: Collator) -> tuple[LogicalBatch, int]:
    """Return a micro-batch of equal samples without common images, and the number of micro-batches of an update."""
    total = logical_batch_size(config.training_args)
    most = config.training_args["per_device_train_batch_size"]
    if config.privacy_args is not None:
        most = config.privacy_args.physical_batch_size
    elif isinstance(config.data_args.tokens_per_micro_batch, int):
        most = max(1, config.data_args.tokens_per_micro_batch // max(1, sum(encoded.lengths)))
    count = min(most, total)
    shared = encoded.image_key is not None
    batch = collate([replace(encoded, image_key=str(number)) if shared else encoded for number in range(count)])
    return batch, math.ceil(total / count)


def faked(encoded: Encoded, fake_of: Callable[[Tensor], Tensor]) -> Encoded:
    """Return a sample with fake pixels."""
    student, targets = (
        {name: fake_of(tensor) for name, tensor in part.items()} for part in (encoded.student, encoded.targets)
    )
    teacher = None if encoded.teacher is None else faked(encoded.teacher, fake_of)
    return replace(encoded, student=student, targets=targets, teacher=teacher)
