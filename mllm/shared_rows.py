"""Division of encoded samples into rows without padding, whose samples share their first tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mllm.structures import Encoded


def leaders_of(samples: Sequence[Encoded]) -> tuple[list[int], list[int]]:
    """Return the leader of each sample, and the number of first tokens that it shares with its leader.

    The leader is the earlier sample with equal images that has the most first tokens in common, at least those up to
    the end of the last image. A sample without one is its own leader and shares 0 tokens.
    """
    leaders, shared = list[int](), list[int]()
    for index, sample in enumerate(samples):
        leader, count = _leader(sample, samples, range(index))
        leaders.append(index if leader is None else leader)
        shared.append(count)
    return leaders, shared


def rows_of(
    samples: Sequence[Encoded], room: int, max_samples: int | None = None, *, in_order: bool = False
) -> list[list[int]]:
    """Divide the indices of samples into rows by first-fit decreasing.

    Samples with equal images are in one row if it has room for them. Samples of unlike `images_per_row` or
    `has_features` never share one. Without shared tokens, the number of rows is at most 11/9 of the minimum plus 1.

    Args:
        samples: Encoded samples.
        room: Maximum number of tokens of a row, with shared tokens counted once; a longer sample is a separate row.
        max_samples: Maximum number of samples of a row; None: any number.
        in_order: The rows have the samples in their order.
    """
    if in_order:
        parts = [_Row([index], len(sample), _kind(sample)) for index, sample in enumerate(samples)]
    else:
        parts = sorted(_parts(samples, room, max_samples), key=lambda part: -part.tokens)
    rows: list[_Row] = []
    for part in parts:
        candidates = rows[-1:] if in_order else rows
        row = next((row for row in candidates if row.has_room_for(part, room, max_samples)), None)
        if row is None:
            rows.append(part)
        else:
            row.members += part.members
            row.tokens += part.tokens
    return [row.members for row in rows]


@dataclass
class _Row:
    """Samples of a row."""

    members: list[int]
    """Indices of the samples."""
    tokens: int
    """Number of their tokens, with shared tokens counted once."""
    kind: tuple[int, bool]
    """Kind of all samples; see `_kind`."""

    def has_room_for(self, part: _Row, room: int, max_samples: int | None) -> bool:
        """Return True if the samples of a part can be appended."""
        few = max_samples is None or len(self.members) + len(part.members) <= max_samples
        return few and part.kind == self.kind and self.tokens + part.tokens <= room


def _parts(samples: Sequence[Encoded], room: int, max_samples: int | None) -> Iterator[_Row]:
    """Yield samples that share tokens, as many as fit into a row, and each other sample alone."""
    buckets: dict[object, list[int]] = {}
    for index, sample in enumerate(samples):
        buckets.setdefault(_key(sample) or index, []).append(index)
    for bucket in buckets.values():
        part = _Row([], 0, _kind(samples[bucket[0]]))
        for index in bucket:
            own = len(samples[index]) - _leader(samples[index], samples, part.members)[1]
            if part.members and not part.has_room_for(_Row([index], own, part.kind), room, max_samples):
                yield part
                part, own = _Row([], 0, part.kind), len(samples[index])
            part.members.append(index)
            part.tokens += own
        yield part


def _kind(sample: Encoded) -> tuple[int, bool]:
    """Return the number of images and the use of stored features, in which the samples of a row are equal."""
    return sample.images_per_row, sample.has_features


def _key(sample: Encoded) -> tuple[str, tuple[int, bool]] | None:
    """Return what samples that share tokens have in common; None: the sample shares nothing."""
    return None if sample.image_key is None else (sample.image_key, _kind(sample))


def _leader(sample: Encoded, samples: Sequence[Encoded], earlier: Iterable[int]) -> tuple[int | None, int]:
    """Return the index of the leader of a sample among earlier ones, None without one, and the shared tokens."""
    leader, most, key = None, 0, _key(sample)
    for index in earlier if key is not None else ():
        if _key(samples[index]) == key:
            common = sample.common_tokens(samples[index])
            if common > most and common >= sample.image_end:
                leader, most = index, common
    return leader, most
