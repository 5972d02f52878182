"""Answers of a model to samples: generated text or predicted measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from tqdm import tqdm

from mllm.models.encoding.views import ViewEncoder
from mllm.models.generation import generate as generation
from mllm.models.generation.generate import evaluating
from mllm.protocols import Bundle
from mllm.structures import Answer, Encoded, Sample

BATCH_SIZE = 8
"""Default number of samples in a forward pass of a model that predicts measures."""


def answers(bundle: Bundle, samples: Iterable[Sample], **options: Any) -> list[Answer]:
    """Return the model's answer to each sample, in order. `options` are those of `generate` or `measure`."""
    if bundle.model.generates_text:
        return generation.generate(bundle, samples, **options)
    return measure(bundle, samples, **options)


def measure(
    bundle: Bundle, samples: Iterable[Sample], *, batch_size: int = BATCH_SIZE, progress: bool = True, **ignored: Any
) -> list[Answer]:
    """Return the measures of each sample, in order and in their own units.

    `ignored` are options of text generation. `samples` may be lazy: one batch is in memory at a time.
    """
    remaining = iter(samples)
    total = len(samples) if isinstance(samples, Sized) else None
    answered: list[Answer] = []
    # disable=None: off without a terminal
    with tqdm(total=total, desc="measures", disable=None if progress else True) as bar:
        while batch := [bundle.encoder.prompt(sample) for sample in islice(remaining, batch_size)]:
            answered += measure_batch(bundle, batch)
            bar.update(len(batch))
    return answered


@torch.inference_mode()
def measure_batch(bundle: Bundle, batch: Sequence[Encoded]) -> list[Answer]:
    """Return the measures of encoded samples, in order and in their own units."""
    model, encoder = bundle.model, bundle.encoder
    assert isinstance(encoder, ViewEncoder)
    with evaluating(model):
        pixels = encoder.pad(batch).to(model.pretrained.device).student
        rows = model(**pixels).heads["measures"].float().cpu().tolist()
    return [encoder.answer(dict(zip(encoder.measures, row, strict=True))) for row in rows]
