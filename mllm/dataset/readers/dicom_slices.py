"""Slices of a DICOM series, sorted by position, with checks that they form one volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm.dataset.readers.dicom import frame_header, pixel_sides
from mllm.dataset.readers.dicom_frames import count_frames, read_header
from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.guarded import report_progress
from mllm.dataset.readers.header_fields import SERIES_TAGS, warn_of_text
from mllm.dataset.readers.volumes import LPS_TO_RAS, Orientation, VoxelSides

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_SLICES = 4096
_SAME_PLANE = 1e-3
"""Maximum difference of the directions of parallel slices."""
_SAME_POSITION = 0.01
"""Maximum distance of slices at one position, in mm."""
_UNEVEN = 0.25
"""Maximum relative difference of a distance between slices from their median; a missing slice doubles it."""
_MAX_SHEAR = 1.0
"""Maximum shift of a slice against the first one within its plane, in pixels, that is regarded as none."""


@dataclass(frozen=True)
class Slice:
    """Frame of a file."""

    file: Path
    frame: int
    header: Dataset


@dataclass(frozen=True)
class Stack:
    """Parallel slices of one size, in ascending order along their normal, the cross product of rows and columns."""

    path: Path
    """Folder or first file, for messages."""
    slices: list[Slice]
    shape: tuple[int, int, int]
    """Columns, rows and slices."""
    orientation: Orientation
    sides: VoxelSides
    shear: float
    """Largest shift of a slice within its plane, in pixels: 0, unless the gantry was tilted."""

    @property
    def normal(self) -> int:
        """Return the axis of the RAS+ volume that is nearest to the normal of the slices."""
        return self.orientation.order.index(2)

    def sorted_numbers(self) -> list[int]:
        """Return the numbers of the slices in ascending order along the axis of the RAS+ volume."""
        numbers = list(range(len(self.slices)))
        return numbers[::-1] if self.orientation.is_flipped[self.normal] else numbers

    def has_one_window(self) -> bool:
        """Return True if all slices have the same window and no VOI LUT."""
        names = ("WindowCenter", "WindowWidth", "VOILUTFunction")
        windows = {str([part.header.get(name) for name in names]) for part in self.slices}
        first = self.slices[0].header
        return len(windows) == 1 and first.get("WindowWidth") is not None and not first.get("VOILUTSequence")

    def check_straight(self) -> None:
        """Raise `DataError` for slices that are shifted within their plane: other axes would show a sheared body."""
        if self.shear > _MAX_SHEAR or len(self.slices) == 1:
            fault = "has one slice" if len(self.slices) == 1 else "was acquired with a tilted gantry"
            raise unusable(self.path, f"{fault}: only the acquired slices can be shown, without the option axis")


def read_stack(files: Sequence[Path], path: Path) -> Stack:
    """Return the slices of a series, from the headers of its files; the last series of this process are kept.

    Args:
        files: DICOM files.
        path: Folder or first file, for messages.

    Raises:
        DataError: The slices do not form one volume.
    """
    states = [file.stat() for file in files]
    stack = _read_stack(path, tuple(files), tuple((state.st_mtime_ns, state.st_size) for state in states))
    warn_of_text(stack.slices[0].header, stack.slices[0].file)
    return stack


@lru_cache(maxsize=8)
def _read_stack(path: Path, files: tuple[Path, ...], states: tuple[tuple[int, int], ...]) -> Stack:
    """Read the headers of the files of a series; `states` are the times of change and sizes of the files."""
    if len(files) > _MAX_SLICES:
        raise unusable(path, f"has {len(files):,} slices, but at most {_MAX_SLICES:,} are supported")
    slices: list[Slice] = []
    series: set[str] = set()
    for file in files:
        header = read_header(file, SERIES_TAGS)
        report_progress()
        series.add(str(header.get("SeriesInstanceUID")))
        slices += _frames(header, file)
    if len(series) > 1:
        raise unusable(path, f"has slices of {len(series)} series: select the files of one of them")
    directions = _common_directions(slices, path)
    origins = np.array([_numbers(part, "ImagePositionPatient", 3) for part in slices])
    positions = origins @ directions[:, 2]
    order = np.argsort(positions, kind="stable")
    step = _step(positions[order], [slices[number] for number in order], path)
    pixel = pixel_sides(slices[0].header, path)
    across, down = pixel.across, pixel.down
    shift = (origins - origins[order[0]]) @ directions[:, :2] / (across, down)
    orientation = Orientation.of(LPS_TO_RAS[:, None] * directions)
    sides = np.array([across, down, step or max(across, down)])
    rows, columns = int(slices[0].header.Rows), int(slices[0].header.Columns)
    return Stack(
        path,
        [slices[number] for number in order],
        (columns, rows, len(slices)),
        orientation,
        VoxelSides(sides[list(orientation.order)], pixel.in_mm),
        float(np.abs(shift).max()),
    )


def _frames(header: Dataset, file: Path) -> Iterator[Slice]:
    for frame in range(count_frames(header, file)):
        yield Slice(file, frame, frame_header(header, frame))


def _numbers(part: Slice, name: str, count: int) -> list[float]:
    """Return the finite numbers of an element; raise `DataError` if it does not have `count` of them."""
    value = part.header.get(name)
    numbers = [] if value is None else [float(number) for number in np.atleast_1d(value)]
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise unusable(part.file, f"has no valid {name}: name the files of a row as its images instead of a volume")
    return numbers


def _common_directions(slices: Sequence[Slice], path: Path) -> np.ndarray:
    """Return the directions along a row, along a column and normal to both, in LPS, one per column, [3, 3].

    Raises:
        DataError: The slices differ in size, pixel size or direction.
    """
    sizes = {(part.header.Rows, part.header.Columns) for part in slices}
    pixels = [pixel_sides(part.header, path) for part in slices]
    sides = np.array([(pixel.across, pixel.down) for pixel in pixels])
    if len(sizes) > 1 or np.abs(sides - sides[0]).max() > _SAME_PLANE * sides[0].max():
        raise unusable(path, "has slices of different sizes: it is not one volume")
    directions = np.array([_numbers(part, "ImageOrientationPatient", 6) for part in slices])
    if np.abs(directions - directions[0]).max() > _SAME_PLANE:
        raise unusable(path, "has slices that are not parallel, such as a scout image: leave it out")
    along_row, along_column = directions[0].reshape(2, 3)
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(along_row @ along_column) > 0.01:
        raise unusable(path, "has an impossible ImageOrientationPatient")
    return np.stack([along_row, along_column, np.cross(along_row, along_column)], axis=1)


def _step(positions: np.ndarray, slices: Sequence[Slice], path: Path) -> float:
    """Return the distance between slices in mm, 0 for one slice.

    Args:
        positions: Positions along the normal in mm, ascending.
        slices: The slices in this order.
        path: Folder or first file, for messages.

    Raises:
        DataError: Two slices have one position, or one is missing.
    """
    if len(positions) == 1:
        return 0.0
    gaps = np.diff(positions)
    step = float(np.median(gaps))
    same = np.flatnonzero(gaps < _SAME_POSITION)
    if same.size:
        fault = (
            f"has {same.size} pairs of slices at one position, as copies or phases: keep one slice for each position"
        )
        names = _names(slices, int(same[0]))
        raise unusable(path, fault, f" (the first are {names})")
    uneven = np.flatnonzero(np.abs(gaps - step) > _UNEVEN * step)
    if uneven.size:
        fault = f"has {uneven.size} uneven distances between slices: slices are missing"
        raise unusable(path, fault, f" (the first between {_names(slices, int(uneven[0]))})")
    return step


def _names(slices: Sequence[Slice], number: int) -> str:
    """Return the names of the files of a slice and the next one."""
    return " and ".join(part.file.name for part in slices[number : number + 2])
