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


def choose_rows(count: int, size: int | None, seed: int) -> list[int]:
    """Return the indices of at most `size` of `count` rows, drawn by `seed`, in ascending order; None: all rows."""
    if size is not None and size < 1:
        raise ConfigError(f"size must be at least 1, not {size}")
    if size is None or size >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:size].tolist())
