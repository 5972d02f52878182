"""Encoding of samples in the workers of a data loader, and collation of a logical batch into pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol

from torch.utils.data import Dataset

from mllm.dataset.loading.sampler import Draw
from mllm.errors import UserError, errors_of_row
from mllm.private_messages import in_row, sentence_of
from mllm.structures import Batch, Encoded, Failure, LogicalBatch, Sample
from mllm.supervision import unsupervised, with_places


class Samples(Protocol):
    """Interface of datasets and combined datasets."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the sample of a row in an epoch."""
        ...


class EncodedDataset(Dataset[Encoded]):
    """Dataset of encoded samples; a row that cannot be used becomes a `Failure`.

    An exception loses its message when it leaves a worker process; a `Failure` keeps it.

    Args:
        samples: Dataset of a split.
        encode: Function that encodes a sample.
        split: Name of the split, for messages of private runs.
    """

    def __init__(self, samples: Samples, encode: Callable[[Sample], Encoded], split: str = "data") -> None:
        self.samples = samples
        self.encode = encode
        self.split = split

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw | int) -> Encoded | Failure:  # type: ignore[override]
        index, epoch, counted, unit = draw if isinstance(draw, Draw) else Draw(draw, 0)
        with in_row(self.split, index):
            try:
                with errors_of_row(f"row {index + 1} of the data"):
                    encoded = self.encode(self.samples.sample(index, epoch))
            except UserError as error:
                return Failure(sentence_of(error), (index, epoch))
        if unit is not None:
            encoded = replace(encoded, unit=unit)
        if counted:
            return encoded
        return replace(encoded, targets=unsupervised(encoded.targets))


class LogicalCollator:
    """Collate the samples of one update into a `LogicalBatch`.

    Samples of similar length share a piece, except that units of several samples keep their order, so that the samples
    of a unit stay together.

    Args:
        pad: Function that pads samples to a batch.
        samples_per_piece: Maximum number of samples of a piece.
        tokens_per_piece: Maximum number of tokens of a piece, padding included; it replaces `samples_per_piece`. A
            longer sample is a separate piece.
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
        """Return the batch of an update, including its failures."""
        encoded = [item for item in items if isinstance(item, Encoded)]
        lengths = [item.lengths for item in encoded]
        units = units_of_samples(encoded)
        kinds = [(item.images_per_row, item.has_features) for item in encoded]
        cuts = self._cuts(lengths, kinds, in_order=bool(units))
        pieces = [with_places(self.pad([encoded[i] for i in cut])) for cut in cuts]
        if units:
            units_of_pieces = [tuple(units[i] for i in cut) for cut in cuts]
            pieces = [replace(piece, units=numbers) for piece, numbers in zip(pieces, units_of_pieces, strict=True)]
        return LogicalBatch(
            pieces=pieces,
            samples=len(encoded),
            tokens=sum(map(sum, lengths)),
            padded_tokens=sum(padded_size([lengths[i] for i in cut]) for cut in cuts),
            truncated=sum(item.truncated for item in encoded),
            failures=tuple(item for item in items if isinstance(item, Failure)),
        )

    def _cuts(
        self, sizes: Sequence[tuple[int, ...]], kinds: Sequence[tuple[int, bool]], in_order: bool
    ) -> list[list[int]]:
        """Divide samples into pieces. Samples of unlike `images_per_row` or `has_features` never share one."""
        order = range(len(sizes)) if in_order else sorted(range(len(sizes)), key=lambda i: kinds[i])
        cut = cut_in_order if in_order else cut_by_length
        cuts = []
        for _, group in groupby(order, key=lambda i: kinds[i]):
            same = list(group)
            pieces = cut([sizes[i] for i in same], self.samples_per_piece, self.tokens_per_piece)
            cuts += [[same[i] for i in piece] for piece in pieces]
        return cuts


def cut_by_length(sizes: Sequence[tuple[int, ...]], max_samples: int | None, max_tokens: int | None) -> list[list[int]]:
    """Divide the indices of `sizes` into pieces of similar length, the longest first.

    Args:
        sizes: Lengths of the sequences of each sample: one, or source and target, which are padded separately.
        max_samples: Maximum number of samples of a piece.
        max_tokens: Maximum number of tokens of a piece, padding included; it replaces `max_samples`.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sum(sizes[i]))
    cuts = cut_in_order([sizes[i] for i in order], max_samples, max_tokens)
    return [[order[i] for i in cut] for cut in cuts]


def cut_in_order(sizes: Sequence[tuple[int, ...]], max_samples: int | None, max_tokens: int | None) -> list[list[int]]:
    """Divide the indices of `sizes` into pieces in their order; see `cut_by_length` for the arguments."""
    pieces: list[list[int]] = []
    for i in range(len(sizes)):
        if pieces:
            extended = [*pieces[-1], i]
            if max_tokens:
                fits = padded_size([sizes[k] for k in extended]) <= max_tokens
            else:
                fits = max_samples is None or len(extended) <= max_samples
            if fits:
                pieces[-1] = extended
                continue
        pieces.append([i])
    return pieces


def padded_size(sizes: Sequence[tuple[int, ...]]) -> int:
    """Return the number of tokens of samples after padding, where each of their sequences is padded separately."""
    return len(sizes) * sum(map(max, zip(*sizes, strict=True)))


def units_of_samples(encoded: Sequence[Encoded]) -> list[int]:
    """Return the privacy unit of each sample; nothing if units have one sample."""
    units = [item.unit for item in encoded if item.unit is not None]
    assert len(units) in (0, len(encoded)), "either all samples belong to a unit or none does"
    return units
