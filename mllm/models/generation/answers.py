"""Answers in numbers: what a model without words measures in the views of each sample."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from itertools import islice
from typing import Any

import torch
from tqdm import tqdm

from mllm.models.generation import generate as generation
from mllm.models.generation.generate import evaluating
from mllm.models.vision_model import VisionModel
from mllm.structures import Answer, Bundle, Sample


def answers(bundle: Bundle, samples: Iterable[Sample], **options: Any) -> list[Answer]:
    """What a model says or measures, whichever it does; `options` are those of `generate` or of `measure`."""
    if isinstance(bundle.model, VisionModel):
        return measure(bundle, samples, **options)
    return generation.generate(bundle, samples, **options)


@torch.inference_mode()
def measure(
    bundle: Bundle, samples: Iterable[Sample], *, batch_size: int = 8, progress: bool = True, **unheard: Any
) -> list[Answer]:
    """The measures of each sample, in order and in their own units; what concerns words in `unheard` has no effect.

    `samples` may be lazy: one batch of them is held at a time.
    """
    model, encoder = bundle.model, bundle.encoder
    remaining = iter(samples)
    total = len(samples) if isinstance(samples, Sized) else None
    found: list[Answer] = []
    with (
        evaluating(model),
        tqdm(total=total, desc="measures", disable=None if progress else True) as bar,  # None: off where nobody watches
    ):
        while batch := [encoder.prompt(sample) for sample in islice(remaining, batch_size)]:
            pixels = encoder.pad(batch).to(model.pretrained.device).student
            rows = model(**pixels).heads["measures"].float().cpu().tolist()
            found += [encoder.answer(dict(zip(encoder.measures, row, strict=True))) for row in rows]
            bar.update(len(batch))
    return found
