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
        index, epoch, counted, unit = draw if isinstance(draw, Draw) else Draw(draw, 0)
        try:
            encoded = self.encode(self.samples.sample(index, epoch))
        except UserError as error:
            return Failure(str(error))
        if unit is not None:
            encoded = replace(encoded, unit=unit)
        if counted:
            return encoded
        return replace(encoded, targets=unsupervised(encoded.targets))


class LogicalCollator:
    """Turns the samples of one update into a `LogicalBatch`.

    Without `tokens_per_piece`, a piece holds at most `samples_per_piece` samples; with it, as many as keep its padded
    tokens within the budget (a longer sample stands alone). Samples of like length share a piece either way, unless
    they belong to units of several samples, which stay side by side.
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
        units = [item.unit for item in encoded if item.unit is not None]
        assert len(units) in (0, len(encoded)), "either every sample belongs to a unit or none does"
        if units:
            cuts = cut_in_order(lengths, self.samples_per_piece, self.tokens_per_piece)
        else:
            cuts = cut_by_length(lengths, self.samples_per_piece, self.tokens_per_piece)
        pieces = [self.pad([encoded[i] for i in cut]) for cut in cuts]
        if units:
            owners = [tuple(units[i] for i in cut) for cut in cuts]
            pieces = [replace(piece, units=owner) for piece, owner in zip(pieces, owners, strict=True)]
        return LogicalBatch(
            pieces=pieces,
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
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    cuts = cut_in_order([lengths[i] for i in order], most_samples, most_tokens)
    return [[order[i] for i in cut] for cut in cuts]


def cut_in_order(lengths: Sequence[int], most_samples: int | None, most_tokens: int | None) -> list[list[int]]:
    """The same for samples that keep their order."""
    pieces: list[list[int]] = []
    width = 0
    for i, length in enumerate(lengths):
        width = max(width, length)
        if pieces:
            count = len(pieces[-1]) + 1
            fits = count * width <= most_tokens if most_tokens else most_samples is None or count <= most_samples
            if fits:
                pieces[-1].append(i)
                continue
        pieces.append([i])
        width = length
    return pieces
