"""Ranges of gray values, their conversion to 8-bit images, and selection of frames, pages and slices."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from mllm.dataset.readers.notices import warn_once
from mllm.errors import ConfigError, DataError, hint

Choice: TypeAlias = str | int | Sequence[int]


class NoSuchImageError(DataError):
    """Index of a frame, page or slice that a file does not have."""

    count = 0
    """Number of frames, pages or slices of the file."""


_QUANTILES = (0.001, 0.999)
_OUTLIER_RATIO = 50
_DARK_RATIO = 10
"""Ratio of the full range to that of nearly all values from which a picture is reported as nearly of one value."""
_PERCENTILES = (0.5, 99.5)
"""Range of uncalibrated values that is shown, as in MedSAM (Ma et al., Nature Communications 15, 654, 2024)."""
_MIN_SAMPLE, _MAX_SAMPLE = 1000, 1_000_000
"""Numbers of values of which quantiles are computed."""
_SMALL_SAMPLE = 10_000
"""Number of values of which gray values are counted."""
_MOST = (2, 98)
"""Percentiles between which most values are."""
_FP32_STEPS = 2**24
_FEW_GRAYS = 26
"""Number of grays below which a picture is reported if 95 % of its pixels share them."""


def exact_floats(values: np.ndarray) -> np.ndarray:
    """Return values as fp32, or as fp64 if some are beyond 2^24, from where on fp32 has no steps of one."""
    is_wide = values.dtype.itemsize > 2 and values.dtype != np.float32
    is_large = is_wide and bool(((values > _FP32_STEPS) | (values < -_FP32_STEPS)).any())
    return np.asarray(values, np.float64 if is_large else np.float32)


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map values from [low, high] to [0, 1], clipped; return 0 if `low` equals `high`. NaN stays NaN."""
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)


def full_range(values: np.ndarray) -> tuple[float, float]:
    """Return the minimum and maximum of the finite values; (0, 0) if there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def display_range(values: np.ndarray, path: Path) -> tuple[float, float]:
    """Return the range that is shown without a window: from the minimum to the maximum of the finite values.

    Single extreme values, which would make everything else black or white, are left out with a warning: if the full
    range is `_OUTLIER_RATIO` times the range between the quantiles `_QUANTILES`, the latter is returned. From
    `_DARK_RATIO` times on there is a warning alone.
    """
    low, high = full_range(values)
    sample = values.reshape(-1)[:: max(1, values.size // _MAX_SAMPLE)]
    sample = sample[np.isfinite(sample)]
    if sample.size < _MIN_SAMPLE:
        return low, high
    inner_low, inner_high = (float(number) for number in np.quantile(sample, _QUANTILES))
    inner, full = inner_high - inner_low, high - low
    if not 0 < _DARK_RATIO * inner < full:
        _warn_of_few_grays(sample, low, high, path)
        return low, high
    is_cut = _OUTLIER_RATIO * inner < full
    result = "the others are shown as black or white" if is_cut else f"these get {256 * inner / full:.0f} of 256 grays"
    warn_once(
        path,
        "outliers",
        f"has values from {low:g} to {high:g}, nearly all from {inner_low:g} to {inner_high:g}: {result}; "
        "set window=(center, width) to choose the range",
    )
    return (inner_low, inner_high) if is_cut else (low, high)


def _warn_of_few_grays(values: np.ndarray, low: float, high: float, path: Path) -> None:
    """Warn if nearly all values would share a few grays in the range from `low` to `high`, although they differ."""
    sample = values[:: 1 + values.size // _SMALL_SAMPLE]
    gray_of = np.rint(scaled(sample, low, high) * 255).astype(np.int64)
    counts = np.bincount(gray_of, minlength=256)
    order = np.argsort(-counts, kind="stable")
    grays = int(np.searchsorted(np.cumsum(counts[order]), 0.95 * sample.size)) + 1
    if grays < _FEW_GRAYS and len(np.unique(sample[np.isin(gray_of, order[:grays])])) > 10 * grays:
        warn_once(
            path,
            "outliers",
            f"has values from {low:g} to {high:g}, of which 95 % get {grays} of 256 grays: set window=(center, width) "
            "to choose the range",
        )


def is_threshold(values: np.ndarray, width: float) -> bool:
    """Return True for a window that makes nearly all values black or white: narrower than 1 of 256 steps through most.

    Args:
        values: Values that are shown. If they are only two, no window is too narrow.
        width: Width of the window, in the unit of the values.
    """
    finite = values[np.isfinite(values)]
    sample = finite[:: 1 + finite.size // _SMALL_SAMPLE]
    low, high = np.percentile(sample, _MOST) if sample.size else (0.0, 0.0)
    return bool(width < (high - low) / 256 and len(np.unique(sample)) > 2)


def percentile_range(values: np.ndarray) -> tuple[float, float]:
    """Return the 0.5th and the 99.5th percentile of the finite values; the full range if they are equal."""
    sample = values.reshape(-1)[:: max(1, values.size // _MAX_SAMPLE)]
    sample = sample[np.isfinite(sample)]
    low, high = (float(number) for number in np.percentile(sample, _PERCENTILES)) if sample.size else (0.0, 0.0)
    return (low, high) if high > low else full_range(values)


def to_image(unit: np.ndarray) -> Image.Image:
    """Return [H, W] or [H, W, 3] values in [0, 1] as an RGB image, rounded to 8 bits; NaN is black."""
    return Image.fromarray(np.rint(np.nan_to_num(unit) * 255).astype(np.uint8)).convert("RGB")


def choose(choice: Choice, count: int, path: Path, option: str, noun: str) -> list[int]:
    """Return the indices from 0 that an option selects, in its order.

    Args:
        choice: 'first', 'middle', 'last', 'all', an index or a list of indices. Negative indices are refused, because
            in annotations they are mostly errors.
        count: Number of available items.
        path: The file, for messages.
        option: Name of the option, for messages.
        noun: Name of an item, for messages.
    """
    names = {"first": [0], "middle": [count // 2], "last": [count - 1], "all": range(count)}
    if isinstance(choice, str):
        if choice not in names:
            raise ConfigError(
                f"{option}='{choice}' must be an index, a list of indices, or a name{hint(choice, names)}"
            )
        return list(names[choice])
    indices = _as_indices(choice, option)
    for index in indices:
        if not 0 <= index < count:
            error = NoSuchImageError(f"{path} has no {noun} {index}: it has {count}, from 0 to {count - 1}")
            error.count = count
            raise error
    return indices


def _as_indices(choice: int | Sequence[int], option: str) -> list[int]:
    items = list(choice) if isinstance(choice, (Sequence, np.ndarray)) else [choice]
    try:
        if any(isinstance(item, bool) for item in items):
            raise TypeError
        indices = [operator.index(item) for item in items]
    except TypeError:
        indices = []
    if not indices:
        raise ConfigError(
            f"{option}={choice!r} must be an index, a list of indices, 'first', 'middle', 'last' or 'all'"
        ) from None
    return indices
