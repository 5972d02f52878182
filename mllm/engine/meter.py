"""What a run's log says beside the loss."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
        self.steps = self.idle = 0
        """Updates since the last entry, and those among them in which no row could be used."""
        self.made = self.learned = 0
        """Updates since the start or the resume: all, and those that were not idle."""
        self.loss = 0.0
        """The sum of their losses, this process's share times the number of processes."""
        self.peak = 0
        """Bytes of this process, sampled while activations are alive; a card keeps its own peak."""

    def see(self, batch: LogicalBatch) -> None:
        """Counts a logical batch about to be trained on; the clock starts with the first."""
        if self.started is None:
            self.started = time.monotonic()
            if torch.cuda.is_available():  # loading a model can take more than training it
                torch.cuda.reset_peak_memory_stats()
        self.tokens += batch.tokens
        self.padded += batch.padded_tokens
        self.samples += batch.samples
        self.truncated += batch.truncated
        self.skip(failure.sentence for failure in batch.failures)

    def skip(self, sentences: Iterable[str]) -> None:
        """Remembers rows that were left out."""
        self.failures.update(dict.fromkeys(sentences))

    def add(self, terms: dict[str, Tensor]) -> None:
        """Adds one piece's share of each objective's term, while the activations behind it are alive."""
        for name, term in terms.items():
            self.terms[name] = self.terms[name] + term if name in self.terms else term
        self.peak = max(self.peak, psutil.Process().memory_info().rss)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for a while: an evaluation trains on no token."""
        start = time.monotonic()
        yield
        if self.started is not None:
            self.started += time.monotonic() - start

    def step(self, loss: float = 0.0, idle: bool = False) -> None:
        """Ends an update; an idle one had no row to learn from, and so no loss."""
        self.steps, self.idle = self.steps + 1, self.idle + idle
        self.made, self.learned = self.made + 1, self.learned + (not idle)
        self.loss += loss

    @property
    def seconds(self) -> float:
        """Since the first batch, evaluations left out."""
        return 0.0 if self.started is None else time.monotonic() - self.started

    def summary(self, accelerator: Any, step: int) -> dict[str, float]:
        """The closing figures at `step` over all processes, of this start or resume alone; none of idle updates."""
        if not self.learned:
            return {}
        mine = torch.tensor([self.samples, self.loss / accelerator.num_processes], dtype=torch.float64)
        samples, loss = accelerator.reduce(mine.to(accelerator.device), "sum").tolist()
        seconds = max(self.seconds, 1e-9)
        return {
            "train_loss": loss / self.learned,
            "train_updates": self.learned,
            "train_from_step": step - self.made,
            "train_samples": samples,
            "train_samples_per_second": samples / seconds,
            "train_steps_per_second": self.learned / seconds,
        }

    def read(self, accelerator: Any) -> dict[str, float]:
        """The entry's figures over all processes; terms are means over the updates since the last entry.

        The peak is that of the process which needs most.
        """
        device = accelerator.device
        names = sorted(self.terms)
        sums = torch.stack([self.terms[name].double() for name in names]) if names else torch.zeros(0, device=device)
        sums = accelerator.reduce(sums, "sum") / max(1, self.steps - self.idle)
        counted = accelerator.reduce(
            torch.tensor([self.tokens, self.padded], dtype=torch.float64, device=device), "sum"
        )
        seconds = self.seconds
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else self.peak
        peaks = accelerator.gather(torch.tensor([peak], dtype=torch.float64, device=device))
        self.terms, self.steps, self.idle = {}, 0, 0
        tokens, padded = counted.tolist()
        return {
            **dict(zip(names, sums.tolist(), strict=True)),
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "padding_share": 1 - tokens / max(1.0, padded),
            "peak_memory_gb": float(peaks.max()) / 1e9,
            "cpu_percent": psutil.cpu_percent(),  # since the last entry
            "ram_percent": psutil.virtual_memory().percent,
        }
