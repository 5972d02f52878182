"""Encodes samples in the loader's workers and cuts each logical batch by length into pieces that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from torch.utils.data import Dataset

from mllm.dataset.sampler import Draw
from mllm.errors import UserError
from mllm.structures import Batch, Encoded, Failure, LogicalBatch, Sample, unsupervised


class Samples(Protocol):
    """What every dataset and combinator offers."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample of a row as an epoch sees it."""
        ...


class EncodedDataset(Dataset[Encoded]):
    """A dataset seen through an encoder; a row that cannot be used becomes a `Failure` instead of an exception.

    Exceptions lose their words on the way out of a worker process; a `Failure` keeps its sentence.
    """

    def __init__(self, samples: Samples, encode: Callable[[Sample], Encoded]) -> None:
        self.samples = samples
        self.encode = encode

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw | int) -> Encoded | Failure:  # type: ignore[override]
        index, epoch, counted = draw if isinstance(draw, Draw) else Draw(draw, 0)
        try:
            encoded = self.encode(self.samples.sample(index, epoch))
        except UserError as error:
            return Failure(str(error))
        if counted:
            return encoded
        return replace(encoded, targets=unsupervised(encoded.targets))


class LogicalCollator:
    """Turns the samples of one update into a `LogicalBatch`.

    Without `tokens_per_piece`, a piece holds at most `samples_per_piece` samples; with it, as many as keep its padded
    tokens within the budget (a longer sample stands alone). Samples of like length share a piece either way.
    """

    def __init__(
        self,
        pad: Callable[[Sequence[Encoded]], Batch],
        *,
        samples_per_piece: int | None = None,
        tokens_per_piece: int | None = None,
    ) -> None:
        self.pad = pad
        self.samples_per_piece = samples_per_piece
        self.tokens_per_piece = tokens_per_piece

    def __call__(self, items: Sequence[Encoded | Failure]) -> LogicalBatch:
        """The batch of an update's samples, its failures beside it."""
        encoded = [item for item in items if isinstance(item, Encoded)]
        lengths = [len(item) for item in encoded]
        cuts = cut_by_length(lengths, self.samples_per_piece, self.tokens_per_piece)
        return LogicalBatch(
            pieces=[self.pad([encoded[i] for i in cut]) for cut in cuts],
            samples=len(encoded),
            tokens=sum(lengths),
            padded_tokens=sum(len(cut) * max(lengths[i] for i in cut) for cut in cuts),
            truncated=sum(item.truncated for item in encoded),
            failures=tuple(item for item in items if isinstance(item, Failure)),
        )


def cut_by_length(lengths: Sequence[int], most_samples: int | None, most_tokens: int | None) -> list[list[int]]:
    """Divides the indices of `lengths` into pieces of like length, the longest first.

    `most_tokens` bounds a piece's padded size (samples times the longest) and takes the place of `most_samples`.
    """
    pieces: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if pieces:
            count = len(pieces[-1]) + 1
            width = lengths[pieces[-1][0]]
            fits = count * width <= most_tokens if most_tokens else most_samples is None or count <= most_samples
            if fits:
                pieces[-1].append(i)
                continue
        pieces.append([i])
    return pieces
