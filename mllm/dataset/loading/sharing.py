"""Pieces without padding, whose samples about the same images share their first tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from mllm.dataset.base import SampleDataset
from mllm.dataset.image_files import UndecodedImage
from mllm.dataset.loading.collator import units_of_samples
from mllm.dataset.progress import with_progress
from mllm.errors import UserError
from mllm.shared_rows import leaders_of, rows_of
from mllm.structures import Batch, Encoded, Failure, LogicalBatch
from mllm.supervision import with_places


class PadRow(Protocol):
    """Function that pads samples of one row, of which some share their first tokens."""

    def __call__(self, samples: Sequence[Encoded], leaders: Sequence[int], shared: Sequence[int], /) -> Batch:
        """Return the batch of samples that have the first `shared` tokens in common with the sample at `leaders`."""


class RowCollator:
    """Collate the samples of one update into a `LogicalBatch` whose pieces are rows without padding.

    Common first tokens of samples with equal `image_key` are in a row once, and count once in its number of tokens.
    Units of several samples keep their order, so that the samples of a unit stay together.

    Args:
        pad: Function that pads samples.
        samples_per_piece: Number of samples as long as the longest one of the update that a piece has room for.
        tokens_per_piece: Maximum number of tokens of a piece; it replaces `samples_per_piece`.
        max_samples: Maximum number of samples of a piece; None: any number of short ones.
    """

    def __init__(
        self,
        pad: PadRow,
        *,
        samples_per_piece: int,
        tokens_per_piece: int | None = None,
        max_samples: int | None = None,
    ) -> None:
        self.pad, self.samples_per_piece, self.tokens_per_piece = pad, samples_per_piece, tokens_per_piece
        self.max_samples = max_samples

    def __call__(self, items: Sequence[Encoded | Failure]) -> LogicalBatch:
        """Return the batch of an update, including its failures."""
        encoded = [item for item in items if isinstance(item, Encoded)]
        tokens = sum(map(len, encoded))
        return LogicalBatch(
            pieces=[self.piece([encoded[index] for index in row]) for row in self.rows(encoded)],
            samples=len(encoded),
            tokens=tokens,
            padded_tokens=tokens,
            truncated=sum(item.truncated for item in encoded),
            failures=tuple(item for item in items if isinstance(item, Failure)),
        )

    def rows(self, encoded: Sequence[Encoded]) -> list[list[int]]:
        """Return the indices of the samples of each piece."""
        room = self.tokens_per_piece or self.samples_per_piece * max(map(len, encoded), default=0)
        return rows_of(encoded, room, self.max_samples, in_order=bool(units_of_samples(encoded)))

    def piece(self, samples: Sequence[Encoded]) -> Batch:
        """Return the batch of the samples of one piece."""
        batch = with_places(self.pad(samples, *leaders_of(samples)))
        units = units_of_samples(samples)
        return replace(batch, units=tuple(units)) if units else batch


def image_groups(split: SampleDataset) -> np.ndarray:
    """Return a number for the images of each row [N] of a split: rows with equal numbers have the same images.

    Rows without files of images, and rows that cannot be read, have a number of their own. Images are compared by
    hashes of 64 bits of their names, so that a row takes 8 bytes.
    """
    hashes = np.zeros(len(split), np.int64)
    for index in with_progress(range(len(split)), "images of rows"):
        try:
            images = split.inspect(index).images
        except UserError:
            images = []
        names = tuple(image.name for image in images if isinstance(image, UndecodedImage))
        hashes[index] = hash(names) if names and len(names) == len(images) else index
    _, first, numbers = np.unique(hashes, return_index=True, return_inverse=True)
    groups: np.ndarray = np.argsort(np.argsort(first))[numbers]  # numbered in the order of their first rows
    return groups
