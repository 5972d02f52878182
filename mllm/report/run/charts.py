"""Geometry of charts, which templates draw as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WIDTH, HEIGHT = 420.0, 300.0
"""Size of a chart in the units of its view box."""
LEFT, RIGHT, TOP, BOTTOM = 68.0, 14.0, 12.0, 44.0
"""Margins around the plotted area."""
MAX_POINTS = 400
"""Maximum number of points of a line; more are thinned out evenly."""
MAX_DOTS = 1500
"""Maximum number of dots of a scatter plot; more are thinned out evenly."""

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Line:
    """Line through points, in the data's units."""

    label: str
    """Text of the legend. Empty: the line is not in it."""
    x: Values
    y: Values
    color: int = 0
    """Number of a color of the style sheet; -1: gray."""
    is_dashed: bool = False


@dataclass(frozen=True)
class Dots:
    """Dots of a scatter plot, in the data's units."""

    label: str
    x: Values
    y: Values
    color: int = 0


@dataclass(frozen=True)
class Tick:
    """Mark of an axis: its place in the chart and its text."""

    place: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """Line or dots in the units of the chart."""

    label: str
    color: int
    is_dashed: bool
    path: str
    """Points of a line, `x,y x,y`. Empty for dots."""
    dots: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """Chart in the units of its view box."""

    title: str
    description: str
    """Text for a screen reader."""
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    parts: list[Drawn]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def chart(
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    parts: Sequence[Line | Dots],
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    smallest_step: float = 0.0,
) -> Chart | None:
    """Return a chart; None if no part has a finite point.

    Args:
        title: Heading.
        description: Text for a screen reader.
        x_label: Name of the x axis with its unit.
        y_label: Name of the y axis with its unit.
        parts: Lines and dots. Points that are not finite are left out.
        x_range: Smallest and largest x; None: those of the data.
        y_range: Smallest and largest y; None: those of the data, with a margin.
        smallest_step: Smallest distance of two ticks of the x axis, such as 1 for integers.
    """
    points = [_finite(part) for part in parts]
    if not any(len(x) for x, _ in points):
        return None
    low_x, high_x = x_range or _range(np.concatenate([x for x, _ in points]), 0.0)
    low_y, high_y = y_range or _range(np.concatenate([y for _, y in points]), 0.06)

    def place_x(value: float) -> float:
        return LEFT + (value - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def place_y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for part, (x, y) in zip(parts, points, strict=True):
        chosen = thinned(len(x), MAX_DOTS if isinstance(part, Dots) else MAX_POINTS)
        places = [(place_x(a), place_y(b)) for a, b in zip(x[chosen].tolist(), y[chosen].tolist(), strict=True)]
        if isinstance(part, Dots):
            label = part.label + (f" ({len(places):,} of {len(x):,} shown)" if len(places) < len(x) else "")
            drawn.append(Drawn(label, part.color, False, "", places))
        elif places:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            drawn.append(Drawn(part.label, part.color, part.is_dashed, path))
    return Chart(
        title,
        description,
        x_label,
        y_label,
        [Tick(place_x(value), text) for value, text in ticks(low_x, high_x, smallest_step)],
        [Tick(place_y(value), text) for value, text in ticks(low_y, high_y)],
        drawn,
    )


def ticks(low: float, high: float, smallest_step: float = 0.0, count: int = 5) -> list[tuple[float, str]]:
    """Return about `count` round values in a range, at least `smallest_step` apart, with their texts."""
    rough = max((high - low) / count, smallest_step)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(number * step, _number(number * step, decimals)) for number in range(first, last + 1)]


def thinned(count: int, limit: int) -> np.ndarray:
    """Return the positions of at most `limit` of `count` points, evenly spaced, with the first and the last one."""
    if count <= limit:
        return np.arange(count)
    return np.array([round(number * (count - 1) / (limit - 1)) for number in range(limit)])


def _number(value: float, decimals: int) -> str:
    """Return the text of a tick."""
    if not value:
        return "0"
    if abs(value) >= 1e6 or decimals > 4:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.{decimals}f}"


def _finite(part: Line | Dots) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(values, float).reshape(-1) for values in (part.x, part.y))
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _range(values: np.ndarray, margin: float) -> tuple[float, float]:
    """Return the range of values with a margin, as a fraction of the range. It is never empty."""
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        reach = abs(low) / 2 or 1.0
        return low - reach, high + reach
    return low - margin * (high - low), high + margin * (high - low)
