"""Encodes samples in the loader's workers; packs each logical batch and cuts it by length into pieces that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch.utils.data import Dataset

from mllm.dataset.loading.sampler import Draw
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

    A piece holds at most `samples_per_piece` rows or, with `tokens_per_piece`, as many as keep its padded tokens
    within the budget (a longer row stands alone). Rows of like length share a piece either way, unless they belong to
    units of several samples, which stay side by side. A row is one sample; with `tokens_per_row` (packing) it is as
    many as fit, and the batch says in `packed_row` [B] which row each is in.
    """

    def __init__(
        self,
        pad: Callable[[Sequence[Encoded]], Batch],
        *,
        samples_per_piece: int | None = None,
        tokens_per_piece: int | None = None,
        tokens_per_row: int | None = None,
    ) -> None:
        self.pad = pad
        self.samples_per_piece = samples_per_piece
        self.tokens_per_piece = tokens_per_piece
        self.tokens_per_row = tokens_per_row

    def __call__(self, items: Sequence[Encoded | Failure]) -> LogicalBatch:
        """The batch of an update's samples, its failures beside it."""
        encoded = [item for item in items if isinstance(item, Encoded)]
        lengths = [item.lengths for item in encoded]
        units = [item.unit for item in encoded if item.unit is not None]
        assert len(units) in (0, len(encoded)), "either every sample belongs to a unit or none does"
        assert not (units and self.tokens_per_row), "the rules refuse packing where units are hidden"
        rows = self._rows([sum(length) for length in lengths])
        sizes = [tuple(map(sum, zip(*(lengths[i] for i in row), strict=True))) for row in rows]
        cut_rows = cut_in_order if units else cut_by_length
        cuts = cut_rows(sizes, self.samples_per_piece, self.tokens_per_piece)
        pieces = [self._piece([[encoded[i] for i in rows[r]] for r in cut]) for cut in cuts]
        if units:
            owners = [tuple(units[i] for i in cut) for cut in cuts]
            pieces = [replace(piece, units=owner) for piece, owner in zip(pieces, owners, strict=True)]
        return LogicalBatch(
            pieces=pieces,
            samples=len(encoded),
            tokens=sum(map(sum, lengths)),
            padded_tokens=sum(padded_size([sizes[r] for r in cut]) for cut in cuts),
            truncated=sum(item.truncated for item in encoded),
            failures=tuple(item for item in items if isinstance(item, Failure)),
        )

    def _rows(self, lengths: list[int]) -> list[list[int]]:
        """Which samples share a row: none but with packing, there as many as fit into the row and the piece."""
        if self.tokens_per_row is None:
            return [[i] for i in range(len(lengths))]
        return packed_rows(lengths, min(self.tokens_per_row, self.tokens_per_piece or self.tokens_per_row))

    def _piece(self, rows: list[list[Encoded]]) -> Batch:
        """The samples of some rows, padded, and with packing the row of each."""
        batch = self.pad([sample for row in rows for sample in row])
        if self.tokens_per_row is None:
            return batch
        places = torch.tensor([number for number, row in enumerate(rows) for _ in row])
        return replace(batch, student={**batch.student, "packed_row": places})


def cut_by_length(sizes: Sequence[tuple[int, ...]], most_rows: int | None, most_tokens: int | None) -> list[list[int]]:
    """Divides the indices of `sizes` into pieces of like length, the longest first.

    A row's size is that of each of its sequences: one, or source and target, which are padded apart. `most_tokens`
    bounds a piece's padded size and takes the place of `most_rows`.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sum(sizes[i]))
    cuts = cut_in_order([sizes[i] for i in order], most_rows, most_tokens)
    return [[order[i] for i in cut] for cut in cuts]


def cut_in_order(sizes: Sequence[tuple[int, ...]], most_rows: int | None, most_tokens: int | None) -> list[list[int]]:
    """The same for samples that keep their order."""
    pieces: list[list[int]] = []
    for i in range(len(sizes)):
        if pieces:
            larger = [*pieces[-1], i]
            if most_tokens:
                fits = padded_size([sizes[k] for k in larger]) <= most_tokens
            else:
                fits = most_rows is None or len(larger) <= most_rows
            if fits:
                pieces[-1] = larger
                continue
        pieces.append([i])
    return pieces


def padded_size(sizes: Sequence[tuple[int, ...]]) -> int:
    """Tokens of rows that are padded to their longest, each of their sequences by itself."""
    return len(sizes) * sum(map(max, zip(*sizes, strict=True)))


def packed_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Divides the indices of `lengths` into rows of at most `room` tokens: the longest first, into the first with room.

    This first-fit decreasing needs at most 11/9 of the fewest rows, and one. What is longer has a row of its own.
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, free in enumerate(left) if lengths[i] <= free), None)
        if row is None:
            rows.append([i])
            left.append(room - lengths[i])
        else:
            rows[row].append(i)
            left[row] -= lengths[i]
    return rows
