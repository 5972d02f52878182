"""Counters for the log of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor

from mllm.memory import peak_memory, restart_peak
from mllm.structures import Failure, LogicalBatch


class Meter:
    """Counters of tokens, samples, losses, time and memory since the start or the resume of a run."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.tokens = self.padded = self.samples = self.truncated = 0
        self.failures: dict[str, tuple[str, Failure]] = {}
        """Sentence -> split and skipped row, in the order of their first appearance; a row that fails again counts
        once."""
        self.terms: dict[str, Tensor] = {}
        self.steps = self.idle = 0
        """Updates since the last log entry: all, and those without a supervised item."""
        self.total_steps = self.supervised_steps = 0
        """Updates since the start or the resume: all, and those with a supervised item."""
        self.loss: Tensor | float = 0.0
        """Sum of the losses of all updates, []: the share of this process times the number of processes."""
        self.peak = 0
        """Peak memory of this process in bytes since the first batch; a GPU counts its own peak. Where the system does
        not count it, it is sampled before each backward."""
        self._is_counted = False
        self._ended: float | None = None
        self._final_peak: int | None = None
        self.before = 0
        """Memory of this process in bytes before it loaded the model; 0 if it is unknown."""

    def count(self, batch: LogicalBatch) -> None:
        """Count a logical batch before it is trained on. The clock starts with the first."""
        if self.started is None:
            self.started = time.monotonic()
            if torch.cuda.is_available():  # loading a model can need more than training it
                torch.cuda.reset_peak_memory_stats()
            self._is_counted = restart_peak()
        self.tokens += batch.tokens
        self.padded += batch.padded_tokens
        self.samples += batch.samples
        self.truncated += batch.truncated
        self.skip("train", batch.failures)

    def skip(self, split: str, failures: Iterable[Failure]) -> None:
        """Record skipped rows of a split."""
        for failure in failures:
            if failure.draw is not None or failure.message not in self.failures:
                self.failures[failure.message] = (split, failure)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the shares of one piece in the terms of the objectives, before its backward."""
        for name, term in terms.items():
            self.terms[name] = self.terms[name] + term if name in self.terms else term
        self._note_peak()

    def _note_peak(self) -> None:
        self.peak = max(self.peak, peak_memory() if self._is_counted else psutil.Process().memory_info().rss)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside the block, as during an evaluation."""
        start = time.monotonic()
        yield
        if self.started is not None:
            self.started += time.monotonic() - start

    def step(self, loss: Tensor | None = None, idle: bool = False) -> None:
        """Count an update and its loss, []. An idle update has no supervised item."""
        self.steps, self.idle = self.steps + 1, self.idle + idle
        self.total_steps, self.supervised_steps = self.total_steps + 1, self.supervised_steps + (not idle)
        if loss is not None:
            self.loss = self.loss + loss.double()  # stays on the device until the summary

    def peak_of_tensors(self, device: torch.device) -> int:
        """Return the peak memory of tensors in bytes: as a GPU counts it, or that of this process since the loading."""
        if self._final_peak is not None:
            return self._final_peak
        if device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(device))
        self._note_peak()
        return max(0, self.peak - self.before)

    def stop(self, device: torch.device) -> None:
        """Stop the clock and keep the peak of tensors: exports and evaluations follow the training."""
        self._final_peak, self._ended = self.peak_of_tensors(device), time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds since the first batch, with the writing of checkpoints and without evaluations."""
        now = time.monotonic() if self._ended is None else self._ended
        return 0.0 if self.started is None else now - self.started

    def summary(self, accelerator: Any, step: int) -> dict[str, float]:
        """Return the final figures over all processes since the start or the resume; empty if all updates were idle."""
        if not self.supervised_steps:
            return {}
        local = torch.tensor([self.samples, float(self.loss) / accelerator.num_processes], dtype=torch.float64)
        samples, loss = accelerator.reduce(local.to(accelerator.device), "sum").tolist()
        seconds = max(self.seconds, 1e-9)
        return {
            "train_loss": loss / self.supervised_steps,
            "train_updates": self.supervised_steps,
            "train_from_step": step - self.total_steps,
            "train_samples": samples,
            "train_samples_per_second": samples / seconds,
            "train_steps_per_second": self.supervised_steps / seconds,
        }

    def read(self, accelerator: Any) -> dict[str, float]:
        """Return the figures of a log entry over all processes, and start the next entry.

        Terms of objectives are means over the updates since the last entry. The peak memory is the largest of all
        processes.
        """
        device = accelerator.device
        names = sorted(self.terms)
        sums = torch.stack([self.terms[name].double() for name in names]) if names else torch.zeros(0, device=device)
        sums = accelerator.reduce(sums, "sum") / max(1, self.steps - self.idle)
        counted = accelerator.reduce(
            torch.tensor([self.tokens, self.padded], dtype=torch.float64, device=device), "sum"
        )
        seconds = self.seconds
        self._note_peak()
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else self.peak
        peaks = accelerator.gather(torch.tensor([peak], dtype=torch.float64, device=device))
        self.terms, self.steps, self.idle = {}, 0, 0
        tokens, padded = counted.tolist()
        return {
            **dict(zip(names, sums.tolist(), strict=True)),
            "seconds": seconds,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "padding_share": 1 - tokens / max(1.0, padded),
            "peak_memory_gb": float(peaks.max()) / 1e9,
            "cpu_percent": psutil.cpu_percent(),  # since the last entry
            "ram_percent": psutil.virtual_memory().percent,
        }
