"""Division of encoded samples into rows whose samples share their first tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def rows_of(samples: Sequence[Encoded], room: int, most: int) -> list[list[int]]:
    """Divide the indices of samples into rows. Samples with equal images are in one row if it has room for them.

    A row has either stored features of images or pixels.

    Args:
        samples: Encoded samples.
        room: Maximum number of tokens of a row, with shared tokens counted once; a longer sample is alone.
        most: Maximum number of samples of a row.
    """
    buckets: dict[object, list[int]] = {}
    for index in sorted(range(len(samples)), key=lambda index: samples[index].has_features):
        buckets.setdefault(_key(samples[index]) or index, []).append(index)
    rows, tokens, has_features = [list[int]()], 0, False
    for bucket in buckets.values():
        if samples[bucket[0]].has_features != has_features:
            rows.append([])
            tokens, has_features = 0, True
        needed = sum(_own_tokens(samples, index, bucket[:place]) for place, index in enumerate(bucket))
        if tokens + needed > room or len(rows[-1]) + len(bucket) > most:
            rows.append([])
            tokens = 0
        for index in bucket:
            own = _own_tokens(samples, index, rows[-1])
            if rows[-1] and (tokens + own > room or len(rows[-1]) == most):
                rows.append([])
                tokens, own = 0, len(samples[index])
            rows[-1].append(index)
            tokens += own
    return [row for row in rows if row]


def _key(sample: Encoded) -> tuple[str, bool] | None:
    """Return what samples that share tokens have in common; None: the sample shares nothing."""
    return None if sample.image_key is None else (sample.image_key, sample.has_features)


def _own_tokens(samples: Sequence[Encoded], index: int, earlier: Iterable[int]) -> int:
    """Return the number of tokens of a sample that it does not share with earlier ones of its row."""
    return len(samples[index]) - _leader(samples[index], samples, earlier)[1]


def _leader(sample: Encoded, samples: Sequence[Encoded], earlier: Iterable[int]) -> tuple[int | None, int]:
    """Return the index of the leader of a sample among earlier ones, None without one, and the shared tokens."""
    leader, most, key = None, 0, _key(sample)
    for index in earlier if key is not None else ():
        if _key(samples[index]) == key:
            common = sample.common_tokens(samples[index])
            if common > most and common >= sample.image_end:
                leader, most = index, common
    return leader, most
