"""Indices of rows: negative indices, and random selections."""

from __future__ import annotations

import numpy as np

from mllm.errors import ConfigError


def from_zero(index: int, count: int) -> int:
    """Return an index that may be negative as an index from 0.

    Raises:
        IndexError: The index is out of range for `count` rows.
    """
    if not -count <= index < count:
        raise IndexError(f"index {index} is out of range for {count} rows")
    return int(index) % count


def generator(*seed: int) -> np.random.Generator:
    """Return `np.random.default_rng(seed)`, in two thirds of the time if all numbers have 32 bits."""
    return np.random.default_rng(np.array(seed, np.uint32) if 0 <= min(seed) <= max(seed) < 1 << 32 else seed)


def choose_rows(count: int, size: int | None, seed: int) -> list[int]:
    """Return the indices of at most `size` of `count` rows, drawn by `seed`, in ascending order; None: all rows."""
    if size is not None and size < 1:
        raise ConfigError(f"size must be at least 1, not {size}")
    if size is None or size >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:size].tolist())
