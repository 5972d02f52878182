"""What a run's log says beside the loss."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from torch import Tensor

from mllm.structures import LogicalBatch


class Meter:
    """What a run's log says beside the loss, counted since the start or the resume and never before it."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.tokens = self.padded = self.samples = self.truncated = 0
        self.failures: dict[str, None] = {}
        """Sentences in the order of their first appearance; a row that fails in every epoch counts once."""
        self.terms: dict[str, Tensor] = {}
        self.steps = 0
        self.peak = 0

    def see(self, batch: LogicalBatch) -> None:
        """Counts a logical batch about to be trained on; the clock starts with the first."""
        self.started = self.started or time.monotonic()
        self.tokens += batch.tokens
        self.padded += batch.padded_tokens
        self.samples += batch.samples
        self.truncated += batch.truncated
        self.failures.update(dict.fromkeys(failure.sentence for failure in batch.failures))

    def add(self, terms: dict[str, Tensor]) -> None:
        """Adds one piece's share of each objective's term."""
        for name, term in terms.items():
            self.terms[name] = self.terms[name] + term if name in self.terms else term

    def step(self) -> None:
        """Ends an update."""
        self.steps += 1
        cuda = torch.cuda.is_available()
        self.peak = torch.cuda.max_memory_allocated() if cuda else max(self.peak, psutil.Process().memory_info().rss)

    def read(self, accelerator: Any) -> dict[str, float]:
        """The entry's figures over all processes; terms are means over the updates since the last entry."""
        device = accelerator.device
        names = sorted(self.terms)
        sums = torch.stack([self.terms[name].double() for name in names]) if names else torch.zeros(0, device=device)
        sums = accelerator.reduce(sums, "sum") / max(1, self.steps)
        counted = accelerator.reduce(
            torch.tensor([self.tokens, self.padded], dtype=torch.float64, device=device), "sum"
        )
        seconds = time.monotonic() - (self.started or time.monotonic())
        self.terms, self.steps = {}, 0
        tokens, padded = counted.tolist()
        return {
            **dict(zip(names, sums.tolist(), strict=True)),
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "padding_share": 1 - tokens / max(1.0, padded),
            "peak_memory_gb": self.peak / 1e9,
        }
