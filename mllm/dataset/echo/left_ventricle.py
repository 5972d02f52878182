"""Volume of the left ventricle from masks of two apical views, by the method of discs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mllm.errors import DataError

CAVITY, MYOCARDIUM = 1, 2
"""Labels in the masks of CAMUS; 3 is the left atrium, 0 the background."""
DISCS = 20
METHOD = (
    f"biplane method of discs (modified Simpson), {DISCS} discs as high as the longer long axis divided by {DISCS}; "
    "base: the middle of the border without myocardium; apex: the border's farthest point from it"
)
"""Method of the volumes; other definitions of base and apex change them by a few percent."""
_MAX_VALVE = 0.5
"""Largest part of the border without myocardium that can be the mitral valve. It is the whole border of a mask of the
cavity alone, whose volume would be half of the true one."""
_SPLIT = 4
"""Subpixels per pixel on both axes, so that discs that are a few pixels high have smooth widths."""


@dataclass(frozen=True)
class Discs:
    """Discs of a ventricle in one view, perpendicular to its long axis."""

    widths: np.ndarray
    """Widths in mm from the base to the apex [DISCS]."""
    length: float
    """Length of the long axis in mm."""


def cut_into_discs(labels: np.ndarray, spacing: tuple[float, float], count: int = DISCS) -> Discs:
    """Return the discs of a mask; the width of a disc is its area divided by its height.

    Args:
        labels: The mask [H, W].
        spacing: Width and height of a pixel in mm.
        count: Number of discs.

    Raises:
        DataError: The mask has no cavity, or no mitral valve, because myocardium surrounds the cavity completely
            or on less than half of its border.
    """
    base, apex = _long_axis(labels, np.asarray(spacing))
    length = float(np.hypot(*(apex - base)))
    along = (apex - base) / length
    rows, columns = np.nonzero(labels == CAVITY)
    parts = (np.arange(_SPLIT) + 0.5) / _SPLIT
    right, down = np.meshgrid(parts, parts)
    x = (columns[:, None] + right.ravel()) * spacing[0]
    y = (rows[:, None] + down.ravel()) * spacing[1]
    positions = (x - base[0]) * along[0] + (y - base[1]) * along[1]
    subpixels, _ = np.histogram(positions, bins=count, range=(0, length))
    area = subpixels * spacing[0] * spacing[1] / _SPLIT**2
    return Discs(widths=area / (length / count), length=length)


def biplane_volume(first: Discs, second: Discs) -> float:
    """Return the volume in mL of elliptic discs with the widths of two views: pi / 4 * sum(a * b) * length / discs.

    The length is that of the longer view, because the other is foreshortened (Lang et al. 2015,
    doi:10.1016/j.echo.2014.10.003).
    """
    height = max(first.length, second.length) / len(first.widths)
    return float(np.pi / 4 * np.sum(first.widths * second.widths) * height / 1000)


def biplane_measures(masks: Mapping[tuple[str, str], tuple[np.ndarray, tuple[float, float]]]) -> dict[str, float]:
    """Return EF in percent, EDV and ESV in mL.

    Args:
        masks: (chamber view, phase), such as ('4CH', 'ED') -> mask and spacing; see `cut_into_discs`.
    """
    discs = {key: cut_into_discs(*mask) for key, mask in masks.items()}
    edv, esv = (biplane_volume(discs["4CH", phase], discs["2CH", phase]) for phase in ("ED", "ES"))
    return {"EF": 100 * (edv - esv) / edv, "EDV": edv, "ESV": esv}


def _long_axis(labels: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the center of the base and the apex [2] in mm, both on the border of the cavity."""
    points, is_near = _border(labels)
    if not len(points):
        raise DataError("the mask has no left ventricle (label 1)")
    valve = _longest_run(points[~is_near]) * spacing
    if len(valve) > _MAX_VALVE * len(points):
        raise DataError(
            f"the mask's left ventricle (label 1) has myocardium (label 2) at less than {1 - _MAX_VALVE:.0%} of its "
            "border, so its base cannot be found"
        )
    if len(valve) < 2:
        raise DataError("the mask's left ventricle (label 1) is closed by myocardium (label 2): it has no base")
    gaps = np.hypot(*(valve[:, None] - valve[None]).transpose(2, 0, 1))
    ends = np.unravel_index(np.argmax(gaps), gaps.shape)
    base = valve[list(ends)].mean(axis=0)
    border = points * spacing
    return base, border[np.argmax(np.hypot(*(border - base).T))]


def _border(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centers of the pixel edges around the cavity [N, 2], x y in pixels, and those near myocardium.

    An edge is near myocardium if one of the eight neighbors of its cavity pixel is myocardium.
    """
    padded = np.pad(labels, 1)
    cavity = padded == CAVITY
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    near_myocardium = np.any([np.roll(padded == MYOCARDIUM, shift, axis=(0, 1)) for shift in shifts], axis=0)
    points, is_near = [], []
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        rows, columns = np.nonzero(cavity & ~np.roll(cavity, (-dy, -dx), axis=(0, 1)))
        points.append(np.stack([columns - 0.5 + dx / 2, rows - 0.5 + dy / 2], axis=1))
        is_near.append(near_myocardium[rows, columns])
    return np.concatenate(points), np.concatenate(is_near)


def _longest_run(points: np.ndarray) -> np.ndarray:
    """Return the largest group of border points that are connected by steps of at most one pixel."""
    remaining = {tuple(point) for point in points.tolist()}
    steps = [(dx / 2, dy / 2) for dx in (-2, -1, 0, 1, 2) for dy in (-2, -1, 0, 1, 2)]
    best: list[tuple[float, float]] = []
    while remaining:
        run, frontier = [], [remaining.pop()]
        while frontier:
            x, y = frontier.pop()
            run.append((x, y))
            for dx, dy in steps:
                if (x + dx, y + dy) in remaining:
                    remaining.remove((x + dx, y + dy))
                    frontier.append((x + dx, y + dy))
        best = max(best, run, key=len)
    return np.array(best).reshape(-1, 2)
