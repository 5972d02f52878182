"""Bootstrap over groups of samples, such as patients: weights of resamples and percentile intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 2000
"""Number of bootstrap samples."""
_CHUNK = 4_000_000
"""Number of weights that are in memory at once."""


def group_numbers(groups: Sequence[str | None]) -> np.ndarray:
    """Return the number of the group of each sample, [N], from 0. A sample without a group is a group of its own."""
    numbers: dict[object, int] = {}
    return np.array(
        [numbers.setdefault(i if group is None else str(group), len(numbers)) for i, group in enumerate(groups)], int
    )


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
        # The numbers of row r begin at r * count.
        flat = np.bincount((drawn + np.arange(rows)[:, None] * count).ravel(), minlength=rows * count)
        yield flat.reshape(rows, count)[:, groups].astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentiles of the finite values: a 95 % interval. NaN without finite values."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def weighted_counts(weights: np.ndarray, samples: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Return the sum [R, count] of the weights [R, N] of the samples in each class.

    Args:
        weights: Weights of the samples, [R, N].
        samples: Index of the sample of each entry, [E].
        classes: Class of each entry, [E], from 0 to `count` - 1.
        count: Number of classes.
    """
    sums = np.zeros((len(weights), count))
    if len(samples):
        order = np.argsort(classes, kind="stable")
        present, starts = np.unique(classes[order], return_index=True)
        sums[:, present] = np.add.reduceat(weights[:, samples[order]], starts, axis=1)
    return sums
