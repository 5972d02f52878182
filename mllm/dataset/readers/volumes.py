"""Slices of volumes as images: orientation of voxels, selection of an axis, and the radiological convention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from mllm.dataset.readers.geometry import MAX_RATIO, PixelSides, with_spacing
from mllm.dataset.readers.gray import Choice, choose, to_image
from mllm.dataset.readers.pixel_limit import check_selected
from mllm.errors import ConfigError, DataError, hint

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Kind of slice -> axis of a volume in RAS+ orientation."""
MAX_VOXELS = 1 << 31
"""Maximum number of voxels of a volume."""
CHEAP_BYTES = 1 << 27
"""Maximum size of the voxels, from the beginning of a file to the selected volume, that are read in this process."""
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
"""Factors that convert directions of DICOM and ITK (to the left, back and head) to RAS (right, front, head)."""


@dataclass(frozen=True)
class VoxelSides:
    """Sides of the voxels of a volume."""

    along: np.ndarray
    """Sides along X, Y and Z of the RAS+ volume, in one unit."""
    in_mm: bool
    """True if the unit is mm. False: only the ratios are known."""

    def in_plane(self, normal: int) -> PixelSides:
        """Return the sides of the pixels of the slices along an axis."""
        across, down = (float(self.along[other]) for other in range(3) if other != normal)
        return PixelSides(across, down, self.in_mm)


@dataclass(frozen=True)
class Orientation:
    """Permutation and signs that bring stored voxels [I, J, K] to RAS+ orientation [X, Y, Z]."""

    order: tuple[int, ...]
    """Stored axis for each of X, Y and Z."""
    is_flipped: tuple[bool, ...]
    """True for each of X, Y and Z if its stored axis runs the other way."""

    @classmethod
    def of(cls, directions: np.ndarray) -> Orientation:
        """Return the orientation to the nearest axes.

        Args:
            directions: Unit vectors of the stored axes in RAS, one per column, [3, 3].
        """
        weights = np.abs(directions)
        order = max(permutations(range(3)), key=lambda axes: sum(weights[world, axes[world]] for world in range(3)))
        return cls(order, tuple(bool(directions[world, axis] < 0) for world, axis in enumerate(order)))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return a view of [I, J, K] in RAS+ orientation."""
        turned = values.transpose(self.order)
        return turned[tuple(slice(None, None, -1 if flipped else 1) for flipped in self.is_flipped)]


def find_axis(axis: str | int) -> int:
    """Return the axis of a volume in RAS+ orientation for an option `axis`."""
    if isinstance(axis, str):
        if axis not in AXES:
            raise ConfigError(f"unknown axis '{axis}'{hint(axis, AXES)}")
        return AXES[axis]
    if isinstance(axis, bool) or axis not in (0, 1, 2):
        raise ConfigError(f"axis={axis!r} must be 'axial', 'coronal', 'sagittal', 0, 1 or 2")
    return axis


def choose_planes(choice: Choice, shape: Sequence[int], normal: int, path: Path) -> list[int]:
    """Return the indices of slices along an axis, as `choose`. Raise `TooManyPixelsError` before they are cut."""
    indices = choose(choice, shape[normal], path, "slice", "slice")
    check_selected(path, len(indices), *(size for axis, size in enumerate(shape) if axis != normal))
    return indices


def plane_of(values: np.ndarray, normal: int, index: int) -> np.ndarray:
    """Return a slice of a volume in RAS+, [row, column]: head or front up, the right or the front on the left."""
    # `take` would copy the whole volume if it is a turned view.
    plane = values[(slice(None),) * normal + (index,)]
    return plane.T[::-1, ::-1]


def plane_images(
    planes: Iterable[np.ndarray],
    show: Callable[[np.ndarray], np.ndarray],
    sides: VoxelSides,
    normal: int,
    path: Path,
    square: bool,
) -> Iterator[Image.Image]:
    """Yield slices as RGB images.

    Args:
        planes: Results of `plane_of`.
        show: Function that maps values to [0, 1].
        sides: Sides of the voxels.
        normal: Axis of the slices.
        path: The file, for messages.
        square: True: resample to square pixels of the shorter side.
    """
    pixel = sides.in_plane(normal)
    across, down = pixel.across, pixel.down
    if square and max(across, down) > MAX_RATIO * min(across, down):
        raise DataError(f"{path} has voxels of {across:g} by {down:g}, which is implausible: its header is damaged")
    for plane in planes:
        yield with_spacing(to_image(show(plane)), pixel, path, square)
