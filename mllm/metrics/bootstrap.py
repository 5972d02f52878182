"""Bootstrap over groups of samples, such as patients: weights of resamples and percentile intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

RESAMPLES = 2000
"""Number of bootstrap samples."""
_CHUNK = 2_000_000
"""Number of weights that are in memory at once."""


def resampled_weights(groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the weights [R, N] of the samples in bootstrap samples of groups, in chunks with `resamples` rows in all.

    The weight of a sample is the number of times that its group was drawn (Efron and Tibshirani 1993, chapter 8:
    resampling of whole clusters).

    Args:
        groups: Number of the group of each sample, [N], from 0.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws. Equal seeds and groups give equal weights.
    """
    count, rng = int(groups.max()) + 1, np.random.default_rng(seed)
    step = max(1, _CHUNK // len(groups))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, count, (rows, count))
        drawn += np.arange(rows)[:, None] * count  # the numbers of row r begin at r * count
        times = np.bincount(drawn.ravel(), minlength=rows * count)
        del drawn
        weights = times.astype(float).reshape(rows, count)
        del times
        yield weights[:, groups]


def by_rows(
    function: Callable[[np.ndarray], dict[str, np.ndarray]], weights: np.ndarray, width: int
) -> dict[str, np.ndarray]:
    """Return the figures [R] that a function computes of weights [R, U], for so few rows at a time that they fit.

    Args:
        function: Function of weights, whose tables have a row for each row of the weights.
        weights: The weights.
        width: Number of columns of these tables.
    """
    step = max(1, _CHUNK // max(1, width))
    parts = [function(weights[start : start + step]) for start in range(0, len(weights), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentiles of the finite values: a 95 % interval. NaN without finite values."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


class ClassCounts:
    """Sums of the weights of the samples in each class, for entries that are sorted once for all resamples.

    Args:
        samples: Index of the sample of each entry, [E].
        classes: Class of each entry, [E], from 0 to `count` - 1.
        count: Number of classes.
        values: Factor of each entry, [E]; None: 1.
    """

    def __init__(self, samples: np.ndarray, classes: np.ndarray, count: int, values: np.ndarray | None = None) -> None:
        order = np.argsort(classes, kind="stable")
        self._samples, self._count = samples[order], count
        self._values = None if values is None else values[order]
        self._present, self._starts = np.unique(classes[order], return_index=True)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Return the sums [R, count] of the weights [R, N]."""
        sums = np.zeros((len(weights), self._count))
        if len(self._samples):
            step = max(1, _CHUNK // len(self._samples))
            for start in range(0, len(weights), step):
                parts = weights[start : start + step, self._samples]
                parts = parts if self._values is None else parts * self._values
                sums[start : start + step, self._present] = np.add.reduceat(parts, self._starts, axis=1)
        return sums
