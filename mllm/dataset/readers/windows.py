"""Windows: ranges of gray values that are shown from black to white, by name, numbers, percentiles or color channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mllm.dataset.readers.gray import display_range, percentile_range, scaled
from mllm.errors import ConfigError, hint

Limits: TypeAlias = tuple[float, float]
"""Values that are shown black and white."""
Window: TypeAlias = str | Sequence[float] | Sequence[str | Sequence[float]] | None

WINDOWS: dict[str, tuple[float, float]] = {
    "abdomen": (50, 400),
    "bone": (400, 1800),
    "brain": (40, 80),
    "liver": (30, 150),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft_tissue": (50, 400),
    "spine": (50, 250),
    "stroke": (40, 40),
    "subdural": (75, 215),
    "temporal_bone": (600, 2800),
    "wide": (0, 2048),
}
"""Center and width of common CT windows, in Hounsfield units: `wide` is the first channel of MedGemma, the others are
those of Murphy et al., Windowing (CT), Radiopaedia.org."""
COLOR_WINDOWS: dict[str, tuple[tuple[float, float], ...]] = {"ct_rgb": ((0, 2048), (40, 350), (40, 80))}
"""Windows of the channels red, green and blue, in Hounsfield units. `ct_rgb`: -1024 to 1024, -135 to 215 and 0 to 80,
as in `high_dimensional_ct_hugging_face.ipynb` of https://github.com/Google-Health/medgemma."""
PERCENTILES = "percentiles"
"""Name of the window from the 0.5th to the 99.5th percentile of a frame or volume, for values without a unit."""
_CHANNELS = 3


@dataclass(frozen=True)
class Windowing:
    """Choice of the gray values to show: what the file names, unless `limits` or `by_percentiles` are set."""

    limits: tuple[Limits, ...] = ()
    """Limits of the gray image, or of each of the channels red, green and blue; empty: no window is chosen."""
    by_percentiles: bool = False
    in_hounsfield: str = ""
    """Name of a window in Hounsfield units; empty: no window is chosen by name."""

    def apply(self, values: np.ndarray, path: Path, mask: np.ndarray | None = None) -> np.ndarray:
        """Map values [H, W] to [0, 1]: [H, W], or [H, W, 3] for windows of channels.

        Args:
            values: Gray values.
            path: The file, for warnings.
            mask: Pixels that count for ranges, [H, W] bool; None: all.
        """
        if len(self.limits) > 1:
            return np.stack([scaled(values, *limits) for limits in self.limits], axis=-1)
        return scaled(values, *self.range_of(values if mask is None else values[mask], path))

    def range_of(self, values: np.ndarray, path: Path) -> Limits:
        """Return the limits of a gray image; without a window, those of `display_range`."""
        if self.limits:
            return self.limits[0]
        return percentile_range(values) if self.by_percentiles else display_range(values, path)

    @property
    def is_chosen(self) -> bool:
        """Return True if the window replaces that of a file."""
        return bool(self.limits) or self.by_percentiles


def find_window(window: Window, named: bool = True) -> Windowing:
    """Return the choice of gray values that an option `window` stands for.

    A window maps center - width/2 to black and center + width/2 to white (LINEAR_EXACT of DICOM, PS3.3 C.11.2.1.3.2).

    Args:
        window: None, a name in `WINDOWS` or `COLOR_WINDOWS`, 'percentiles', (center, width), or three names or pairs
            for the channels red, green and blue. Blanks and hyphens in names count as underscores.
        named: False if the values cannot be Hounsfield units, so that names in Hounsfield units are refused.
    """
    if window is None:
        return Windowing()
    if isinstance(window, str):
        return _find_named(window, named)
    if _is_three_windows(window):
        return _find_channels(window, named)
    return Windowing((_limits(window),))


def _find_named(window: str, named: bool) -> Windowing:
    name = window.strip().lower().replace(" ", "_").replace("-", "_")
    if name == PERCENTILES:
        return Windowing(by_percentiles=True)
    if not named:
        raise ConfigError(
            f"window='{window}' is in Hounsfield units, which this type of file does not have; "
            f"use window=(center, width) in the gray values of the file, or window='{PERCENTILES}'"
        )
    channels = COLOR_WINDOWS.get(name) or ((WINDOWS[name],) if name in WINDOWS else ())
    if not channels:
        raise ConfigError(f"unknown window '{window}'{hint(window, [*WINDOWS, *COLOR_WINDOWS, PERCENTILES])}")
    return Windowing(tuple(map(_limits, channels)), in_hounsfield=name)


def _find_channels(window: Sequence[Any], named: bool) -> Windowing:
    parts = [find_window(part, named) for part in window]
    if any(len(part.limits) != 1 for part in parts):
        raise ConfigError(f"window={window!r} must have three names or pairs (center, width), one for each channel")
    names = [part.in_hounsfield for part in parts if part.in_hounsfield]
    return Windowing(tuple(part.limits[0] for part in parts), in_hounsfield=names[0] if names else "")


def _is_three_windows(window: Any) -> bool:
    """Return True for three windows, one for each channel; False for one window (center, width)."""
    if not isinstance(window, Sequence) or len(window) != _CHANNELS:
        return False
    return any(isinstance(part, (str, Sequence)) for part in window)


def _limits(window: Any) -> Limits:
    """Return the limits of a window (center, width)."""
    try:
        center, width = (float(number) for number in window)
    except (TypeError, ValueError):
        raise ConfigError(
            f"window={window!r} must be a name, a pair (center, width), or three of these for red, green and blue"
        ) from None
    if not (np.isfinite(center) and np.isfinite(width) and width > 0):
        raise ConfigError(f"window={window!r} must be finite and have a width above 0")
    return center - width / 2, center + width / 2
