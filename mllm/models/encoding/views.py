"""Encoder of models that predict measures: pixels of named views, and their measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mllm.contents import measures_text
from mllm.errors import DataError, errors_of_row
from mllm.models.encoding.marks import source_of
from mllm.models.encoding.synthetic import synthetic_views
from mllm.structures import Answer, Batch, Encoded, Sample
from mllm.supervision import unsupervised


class ViewEncoder:
    """Selection of the model's views by name, and conversion to pixels. Implements `mllm.protocols.Encoder`."""

    def __init__(self, processor: Any, *, views: Sequence[str], measures: Sequence[str] = (), tokens: int = 1) -> None:
        self.processor = processor
        """Image processor of the checkpoint."""
        self.views, self.measures = tuple(views), tuple(measures)
        self.tokenizer = None
        self.tokens = tokens
        """Number of features per image."""

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """Return an empty tuple: the model reads no text."""
        return ()

    def synthetic(self, count: int) -> list[Sample]:
        """Return `count` artificial samples: images of noise, and measures without meaning."""
        return synthetic_views(count, self.views, self.measures)

    def encode(self, sample: Sample) -> Encoded:
        """Return the pixels [V, 3, H, W] of the views and the measures [K]. Raise `DataError` if a view is absent."""
        missing = [view for view in self.views if view not in sample.views]
        if missing:
            raise DataError(
                f"{source_of(sample)}: the view '{missing[0]}' is absent "
                f"(there are {', '.join(sample.views) or 'no named views'})"
            )
        images = [sample.images[sample.views.index(view)] for view in self.views]
        values = torch.tensor([sample.measures.get(name, math.nan) for name in self.measures], dtype=torch.float64)
        known = values.isfinite()
        views_known = torch.ones(len(self.views), dtype=torch.bool)
        targets = {"measures": values.where(known, 0.0).float(), "measures_known": known, "views_known": views_known}
        with errors_of_row(source_of(sample)):
            pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        length = len(self.views) * self.tokens
        return Encoded({"pixel_values": pixels}, targets, source=sample.source, length=length)

    def prompt(self, sample: Sample) -> Encoded:
        """Return the pixels of the views, without targets."""
        encoded = self.encode(sample)
        return Encoded(encoded.student, unsupervised(encoded.targets), source=sample.source, length=len(encoded))

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """Return a batch. All samples have the same views, so no padding is needed."""

        def stack(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

        images = tuple(index for index in range(len(samples)) for _ in self.views)
        students, targets = [sample.student for sample in samples], [sample.targets for sample in samples]
        return Batch(stack(students), stack(targets), images=images)

    def reference(self, sample: Sample) -> Answer:
        """Return the true measures of a sample and its group."""
        answer = self.answer({name: sample.measures.get(name, math.nan) for name in self.measures})
        return replace(answer, group=sample.group)

    def answer(self, values: dict[str, float]) -> Answer:
        """Return measures as an answer with the text `EF 58.4 %, EDV 120.1 mL, ESV 50.0 mL`."""
        return Answer(measures_text(values), measures=values)
