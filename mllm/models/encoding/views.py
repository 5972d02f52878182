"""Samples of named views for models that give numbers: pixels in the order of the views' names, measures with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mllm.errors import DataError
from mllm.models.encoding.synthetic import synthetic_views
from mllm.structures import UNITS, Answer, Batch, Encoded, Sample, unsupervised


class ViewEncoder:
    """Shows a model the views that it was built for, whatever the order in which a sample holds them."""

    def __init__(self, processor: Any, *, views: Sequence[str], measures: Sequence[str] = (), tokens: int = 1) -> None:
        self.processor = processor
        """The checkpoint's image processor."""
        self.views, self.measures = tuple(views), tuple(measures)
        self.tokenizer = None
        self.tokens = tokens
        """Number of features per image."""

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """Return an empty tuple: the model reads no text."""
        return ()

    def synthetic(self, count: int) -> list[Sample]:
        """Return `count` samples of noise with made-up measures."""
        return synthetic_views(count, self.views, self.measures)

    def encode(self, sample: Sample) -> Encoded:
        """The pixels [V, 3, H, W] of the views and the measures [K]; raises `DataError` for a view that is absent."""
        where = sample.source or "a sample"
        missing = [view for view in self.views if view not in sample.views]
        if missing:
            raise DataError(
                f"{where}: the view '{missing[0]}' is absent (there are {', '.join(sample.views) or 'no named views'})"
            )
        images = [sample.images[sample.views.index(view)] for view in self.views]
        values = torch.tensor([sample.measures.get(name, math.nan) for name in self.measures], dtype=torch.float64)
        known = values.isfinite()
        seen = torch.ones(len(self.views), dtype=torch.bool)
        targets = {"measures": values.where(known, 0.0).float(), "measures_known": known, "views_known": seen}
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        length = len(self.views) * self.tokens
        return Encoded({"pixel_values": pixels}, targets, source=sample.source, length=length)

    def prompt(self, sample: Sample) -> Encoded:
        """The views alone."""
        encoded = self.encode(sample)
        return Encoded(encoded.student, unsupervised(encoded.targets), source=sample.source, length=len(encoded))

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """One batch; all samples have the same views, so nothing is padded."""

        def stack(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

        images = tuple(place for place in range(len(samples)) for _ in self.views)
        students, targets = [sample.student for sample in samples], [sample.targets for sample in samples]
        return Batch(stack(students), stack(targets), images=images)

    def reference(self, sample: Sample) -> Answer:
        """The true measures, and who they belong to."""
        answer = self.answer({name: sample.measures.get(name, math.nan) for name in self.measures})
        return replace(answer, group=sample.group)

    def answer(self, values: dict[str, float]) -> Answer:
        """Measures, and a sentence of them: `EF 58.4 %, EDV 120.1 mL, ESV 50.0 mL`."""
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        told = [f"{name} {value:.1f} {UNITS.get(name, '')}".strip() for name, value in known.items()]
        return Answer(", ".join(told), measures=values)
