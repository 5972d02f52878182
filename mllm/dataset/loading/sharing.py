"""Groups of samples about the same images, whose common first tokens are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mllm.dataset.base import SampleDataset
from mllm.dataset.image_files import UndecodedImage
from mllm.dataset.loading.collator import packed_rows
from mllm.dataset.progress import with_progress
from mllm.errors import UserError
from mllm.structures import Batch, Encoded, Failure, LogicalBatch


class PadRow(Protocol):
    """Function that pads samples of one row, of which some share their first tokens."""

    def __call__(self, samples: Sequence[Encoded], leaders: Sequence[int], shared: Sequence[int], /) -> Batch:
        """Return the batch of samples that have the first `shared` tokens in common with the sample at `leaders`."""


class RowCollator:
    """Collate the samples of one update into a `LogicalBatch` whose pieces are rows without padding.

    Common first tokens of samples with equal `image_key` are in a row once, and count once in its number of tokens.

    Args:
        pad: Function that pads samples.
        samples_per_piece: Maximum number of samples of a piece that would share nothing and be as long as the longest
            one of the update; the tokens of a piece are at most as many.
        tokens_per_piece: Maximum number of tokens of a piece; it replaces `samples_per_piece`.
    """

    def __init__(self, pad: PadRow, *, samples_per_piece: int, tokens_per_piece: int | None = None) -> None:
        self.pad, self.samples_per_piece, self.tokens_per_piece = pad, samples_per_piece, tokens_per_piece

    def __call__(self, items: Sequence[Encoded | Failure]) -> LogicalBatch:
        """Return the batch of an update, including its failures."""
        encoded = [item for item in items if isinstance(item, Encoded)]
        tokens = sum(map(len, encoded))
        return LogicalBatch(
            pieces=[self.piece(encoded, groups) for groups in self.cut(encoded)],
            samples=len(encoded),
            tokens=tokens,
            padded_tokens=tokens,
            truncated=sum(item.truncated for item in encoded),
            failures=tuple(item for item in items if isinstance(item, Failure)),
        )

    def cut(self, encoded: Sequence[Encoded]) -> list[list[Group]]:
        """Return the groups of each piece. Samples of unlike `images_per_row` or `has_features` never share one."""
        room = self.tokens_per_piece or self.samples_per_piece * max(map(len, encoded), default=0)
        kinds: dict[tuple[int, bool], list[Group]] = {}
        for group in shared_groups(encoded, room):
            first = encoded[group.members[0]]
            kinds.setdefault((first.images_per_row, first.has_features), []).append(group)
        cuts = []
        for _, same in sorted(kinds.items()):
            cuts += [[same[i] for i in row] for row in packed_rows([group.tokens for group in same], room)]
        return cuts

    def piece(self, encoded: Sequence[Encoded], groups: Sequence[Group]) -> Batch:
        """Return the batch of some groups of samples."""
        samples, leaders, shared = list[Encoded](), list[int](), list[int]()
        for group in groups:
            leaders += [len(samples)] * len(group.members)
            shared += [group.shared] * len(group.members)
            samples += [encoded[index] for index in group.members]
        return self.pad(samples, leaders, shared)


@dataclass(frozen=True)
class Group:
    """Samples of one piece with equal images."""

    members: tuple[int, ...]
    """Indices of the samples."""
    shared: int
    """Number of first tokens that all have in common, with those of the images; 0: the group is one sample."""
    tokens: int
    """Number of tokens of all members, where common tokens count once."""


def shared_groups(samples: Sequence[Encoded], room: int) -> list[Group]:
    """Divide the indices of samples into groups of samples that have the images and all tokens up to them in common.

    Args:
        samples: Encoded samples.
        room: Maximum number of tokens of a group; a longer sample is a group of its own.
    """
    buckets: dict[object, list[int]] = {}
    for index, sample in enumerate(samples):
        key = (sample.image_key, sample.has_features) if sample.image_key else index
        buckets.setdefault(key, []).append(index)
    groups = []
    for bucket in buckets.values():
        while bucket:
            first, rest = bucket[0], []
            members, shared = [first], len(samples[first])
            for index in bucket[1:]:
                common = min(shared, samples[first].common_tokens(samples[index]))
                tokens = common + sum(len(samples[i]) - common for i in (*members, index))
                if common < samples[first].image_end or tokens > room:
                    rest.append(index)
                else:
                    members, shared = [*members, index], common
            shared = shared if len(members) > 1 else 0
            tokens = shared + sum(len(samples[i]) - shared for i in members)
            groups.append(Group(tuple(members), shared, tokens))
            bucket = rest
    return groups


def image_groups(split: SampleDataset) -> np.ndarray:
    """Return a number for the images of each row [N] of a split: rows with equal numbers have the same images.

    Rows without files of images, and rows that cannot be read, have a number of their own.
    """
    numbers: dict[object, int] = {}
    groups = []
    for index in with_progress(range(len(split)), "images of rows"):
        try:
            images = split.inspect(index).images
        except UserError:
            images = []
        names = tuple(image.name for image in images if isinstance(image, UndecodedImage))
        key = names if names and len(names) == len(images) else index
        groups.append(numbers.setdefault(key, len(numbers)))
    return np.array(groups)
