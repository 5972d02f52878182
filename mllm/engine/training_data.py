"""Encoded splits as a trainer reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, Sampler

from mllm.protocols import Collator
from mllm.structures import Encoded


@dataclass(frozen=True)
class TrainingData:
    """The splits that a training reads, each with the sampler of its logical batches."""

    collate: Collator
    """Combines the encoded samples of one update into a logical batch."""
    train_dataset: Dataset[Encoded]
    train_sampler: Any
    """A sampler of logical batches with `set_epoch`; with `privacy_args` also with `units` and `rate`."""
    eval_dataset: Dataset[Encoded] | None = None
    """None: no validation split."""
    eval_sampler: Sampler[Any] | None = None
    synthetic: list[Encoded] | None = None
    """Artificial samples for the checks before the first update; None without `privacy_args`."""
