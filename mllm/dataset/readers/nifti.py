"""Reader of slices of NIfTI volumes, in radiological convention."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.gray import Choice, exact_floats, full_range, is_threshold
from mllm.dataset.readers.guarded import call_guarded, is_installed
from mllm.dataset.readers.notices import warn_once
from mllm.dataset.readers.volumes import (
    CHEAP_BYTES,
    MAX_VOXELS,
    VoxelSides,
    choose_planes,
    find_axis,
    plane_images,
    plane_of,
)
from mllm.dataset.readers.windows import Window, Windowing, find_window
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

_GZIP = b"\x1f\x8b"
_NIFTI2_HEADER = 540
"""Size of the header of a NIfTI-2 file, which is its first number."""
_MILLIMETERS = {"meter": 1000.0, "micron": 0.001}
"""Units of lengths besides mm, in mm. A header without a unit is in mm, as for ITK."""
_MAX_DEFLATION = 1032
"""Maximum ratio of the sizes after and before decompression (https://zlib.net/zlib_tech.html)."""
_MAX_RANGES = 100_000
_RANGES: dict[tuple[Path, int, int, int, bool], tuple[float, float]] = {}
"""Black and white of volumes whose voxels were read, by path, time of the last change, size, volume and percentiles."""


@READERS.register_module(name=[".nii", ".nii.gz"])
def read(
    path: Path,
    *,
    axis: str | int = "axial",
    slice: Choice = "middle",
    volume: int = 0,
    window: Window = None,
    square: bool = True,
) -> list[Image.Image]:
    """Read slices of a NIfTI volume as RGB images.

    The volume is reoriented to RAS+ (axes to the right, front and head) by its affine, to the nearest axes. Slices are
    in radiological convention: axial with the front up, coronal and sagittal with the head up, the patient's right on
    the left of the image, in sagittal slices the front on the left. In-plane voxels that are not square are resampled
    to squares of the shorter side (bilinear), so boxes are in pixels of the resampled image. Voxels of over 128 MiB are
    read in the guarded process.

    Args:
        path: The file.
        axis: 'axial', 'coronal', 'sagittal', or an axis of the RAS+ volume: 0 (sagittal), 1 (coronal), 2 (axial).
        slice: Slices along the axis, from 0 (left, back, bottom): an index, a list, 'first', 'middle', 'last', 'all'.
        volume: Index in a 4D series.
        window: (center, width) in the units of the file, a name of `WINDOWS` or `COLOR_WINDOWS` in `windows.py`, if
            the units are Hounsfield units (NIfTI does not store the unit), 'percentiles' of the volume (from the 0.5th
            to the 99.5th, for MR), or three names or pairs for the channels red, green and blue. None: the display
            range of the file (`cal_min`, `cal_max`), else the full range of the volume. NaN is black.
        square: False: return the stored pixels, for boxes and masks that refer to them.
    """
    find_window(window)
    find_axis(axis)
    if not is_installed("nibabel"):
        raise ConfigError(f"{path} is a NIfTI file, but nibabel is not installed: pip install -e .[nifti]")
    with _damage_refused(path):
        size = _count_bytes(load_nifti(path), volume, path)
    if size <= CHEAP_BYTES:
        return list(slices(path, axis, slice, volume, window, square))
    return call_guarded(f"{__name__}:slices", path, axis, slice, volume, window, square, size=size)


@contextmanager
def _damage_refused(path: Path) -> Iterator[None]:
    """Convert the errors of nibabel, gzip and zlib for a damaged file, which have different types, to `DataError`."""
    try:
        yield
    except (ConfigError, DataError, PermissionError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{path} is not a NIfTI file or is damaged ({type(error).__name__})") from error


def slices(
    path: Path, axis: str | int, slice: Choice, volume: int, window: Window, square: bool
) -> Iterator[Image.Image]:
    """Yield slices of a NIfTI volume as RGB images; see `read`."""
    windowing = find_window(window)
    normal = find_axis(axis)
    with _damage_refused(path):
        stored = _Volume.of(load_nifti(path), volume, path)
        values = None if stored.reads_planes else stored.values()
        if len(windowing.limits) <= 1:
            windowing = Windowing(windowing.limits or (_range_of(stored, windowing, values),))
        indices = choose_planes(slice, stored.shape, normal, path)
    planes = _planes(stored, normal, indices, values)
    yield from plane_images(planes, partial(windowing.apply, path=path), stored.sides, normal, path, square)


def _planes(stored: _Volume, normal: int, indices: Sequence[int], values: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield slices along an axis; see `_Volume.plane`."""
    for index in indices:
        with _damage_refused(stored.path):
            plane = stored.plane(normal, index, values)
        yield plane


def load_nifti(path: Path) -> Any:
    """Load the header of a NIfTI file with nibabel, also if its suffix is wrong about the compression.

    Raises:
        DataError: It has another format that nibabel reads.
    """
    import nibabel

    is_compressed = _is_compressed(path)
    if is_compressed == path.name.lower().endswith(".gz"):
        image = nibabel.load(path, mmap=False)
    else:
        # nibabel reads the voxels from the stream later.
        stream: Any = gzip.open(path) if is_compressed else path.open("rb")  # noqa: SIM115
        size = stream.read(4)
        stream.seek(0)
        is_second = _NIFTI2_HEADER in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))
        image = (nibabel.Nifti2Image if is_second else nibabel.Nifti1Image).from_stream(stream)
    if not isinstance(image, nibabel.Nifti1Image):
        raise DataError(f"{path} is not a NIfTI volume (it is a {type(image).__name__})")
    return image


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def check_size(path: Path, size: int) -> None:
    """Raise `DataError` if a file is too short to contain, after decompression, `size` bytes."""
    available = path.stat().st_size * (_MAX_DEFLATION if _is_compressed(path) else 1)
    if size > available:
        raise DataError(
            f"{path} is truncated or damaged: its header describes {size:,} bytes, and it has at most {available:,}"
        )


def _count_bytes(image: Nifti1Image, volume: int, path: Path) -> int:
    """Return the bytes from the first voxel to the end of a volume; raise `DataError` for a file that lacks them."""
    if image.get_data_dtype().kind not in "iufb":
        raise DataError(f"{path} has voxels of type {image.get_data_dtype()}, but only real numbers are supported")
    shape = image.shape + (1,) * (3 - len(image.shape))
    if min(shape) < 1 or math.prod(shape[:3]) > MAX_VOXELS:
        raise DataError(
            f"{path} has the shape {image.shape}: each side must be at least 1, and a volume at most "
            f"{MAX_VOXELS:,} voxels"
        )
    count = int(np.prod(shape[3:], dtype=int))
    if isinstance(volume, bool) or not isinstance(volume, (int, np.integer)):
        raise ConfigError(f"volume={volume!r} must be an index from 0")
    if not 0 <= volume < count:
        raise DataError(f"{path} has no volume {volume}: it has {count}, from 0 to {count - 1}")
    if _start_of_voxels(image) < image.header.sizeof_hdr:
        raise unusable(path, "is damaged: its voxels begin within its header (vox_offset)")
    size = math.prod(shape[:3]) * image.get_data_dtype().itemsize * (int(volume) + 1)
    check_size(path, size)
    _warn_of_further_voxels(image, size // (int(volume) + 1) * count, path)
    return size


def _warn_of_further_voxels(image: Nifti1Image, described: int, path: Path) -> None:
    """Warn of a file with more bytes of voxels than its header describes: at least one slice more."""
    length = _uncompressed_size(path) - _start_of_voxels(image)
    slice_length = math.prod(image.shape[:2]) * image.get_data_dtype().itemsize
    if length >= described + slice_length:
        warn_once(
            path,
            "further pixels",
            f"has {length:,} bytes of voxels, and its header (dim, datatype) describes {described:,}: the others are "
            "ignored",
        )


def _start_of_voxels(image: Any) -> int:
    """Return the number of bytes before the first voxel, after decompression."""
    return int(image.dataobj.offset)


def _uncompressed_size(path: Path) -> int:
    """Return the size of a file after decompression; gzip stores it in the last 4 bytes, modulo 2^32."""
    if not _is_compressed(path):
        return path.stat().st_size
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


@dataclass(frozen=True)
class _Volume:
    """One volume [X, Y, Z] of a file in RAS+ orientation."""

    image: Nifti1Image
    path: Path
    number: int
    """Index of the volume in a 4D series."""
    orientation: np.ndarray
    """Axis in RAS+ and direction of each stored axis, [3, 2]; see `nibabel.io_orientation`."""
    sides: VoxelSides

    @classmethod
    def of(cls, image: Nifti1Image, number: int, path: Path) -> _Volume:
        """Return a volume of an image. Raise `DataError` for an affine that is singular."""
        import nibabel

        orientation = nibabel.io_orientation(image.affine)
        spacing = nibabel.affines.voxel_sizes(image.affine)
        if np.isnan(orientation).any() or not (np.isfinite(spacing) & (spacing > 0)).all():
            raise DataError(f"{path} has no orientation: its affine is singular")
        if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
            warn_once(path, "orientation", "states no orientation (qform and sform): right and left may be exchanged")
        unit = _MILLIMETERS.get(image.header.get_xyzt_units()[0], 1.0)
        sides = VoxelSides(unit * spacing[np.argsort(orientation[:, 0])], in_mm=True)
        return cls(image, path, number, orientation, sides)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Return the number of voxels along each stored axis, with at least three axes."""
        shape: tuple[int, ...] = self.image.shape
        return shape + (1,) * (3 - len(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the number of voxels along X, Y and Z."""
        return tuple(self.stored_shape[self._stored_axis(axis)] for axis in range(3))

    @property
    def reads_planes(self) -> bool:
        """Return True if single slices are read.

        A compressed file is read to the end of the volume, because only its checksum shows some kinds of damage.
        """
        return len(self.image.shape) >= 3 and not _is_compressed(self.path)

    def values(self) -> np.ndarray:
        """Return all voxels [X, Y, Z], fp32 or fp64."""
        return self._read((slice(None),) * 3)

    def plane(self, normal: int, index: int, values: np.ndarray | None) -> np.ndarray:
        """Return a slice along an axis, as `plane_of`, from `values` or, if these are None, from the file."""
        if values is not None:
            return plane_of(values, normal, index)
        axis = self._stored_axis(normal)
        place = index if self.orientation[axis, 1] > 0 else self.stored_shape[axis] - 1 - index
        return plane_of(
            self._read(tuple(slice(place, place + 1) if k == axis else slice(None) for k in range(3))), normal, 0
        )

    def _stored_axis(self, axis: int) -> int:
        """Return the stored axis of X, Y or Z."""
        return int(np.flatnonzero(self.orientation[:, 0] == axis)[0])

    def _read(self, part: tuple[slice, ...]) -> np.ndarray:
        """Return a part of the stored voxels in RAS+, fp32 or fp64; see `exact_floats`."""
        import nibabel

        # Slicing the proxy reads this part of the file only, and one volume of a series.
        others = self.stored_shape[3:]
        position = np.unravel_index(self.number, others, order="F") if others else ()
        index = (*part[: len(self.image.shape)], *(int(number) for number in position))
        values = exact_floats(np.asarray(self.image.dataobj[index]))
        turned: np.ndarray = nibabel.apply_orientation(
            values.reshape(values.shape + (1,) * (3 - values.ndim)), self.orientation
        )
        return turned


def _range_of(volume: _Volume, windowing: Windowing, values: np.ndarray | None) -> tuple[float, float]:
    """Return the values of a volume that are black and white without a window of fixed limits.

    Args:
        volume: The volume.
        windowing: Choice without limits.
        values: All voxels; None: they are read from the file, once for all slices of the volume.
    """
    if values is not None:
        return _computed_range(volume, windowing, values)
    path, status = volume.path, volume.path.stat()
    key = (path, status.st_mtime_ns, status.st_size, volume.number, windowing.by_percentiles)
    if key not in _RANGES:
        if len(_RANGES) >= _MAX_RANGES:
            _RANGES.clear()
        _RANGES[key] = _computed_range(volume, windowing, volume.values())
    return _RANGES[key]


def _computed_range(volume: _Volume, windowing: Windowing, values: np.ndarray) -> tuple[float, float]:
    """Return the display range of the header, or that of all voxels."""
    limits = None if windowing.is_chosen else _header_range(volume.image, values, volume.path)
    return limits or windowing.range_of(values, volume.path)


def _header_range(image: Nifti1Image, values: np.ndarray, path: Path) -> tuple[float, float] | None:
    """Return the display range of the header; None if there is none, or if all voxels would get one gray value."""
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    if not (np.isfinite([low, high]).all() and high > low):
        return None
    first, last = full_range(values)
    is_too_wide = (high - low) / 256 > last - first
    if last > first and (low >= last or high <= first or is_too_wide or is_threshold(values.ravel(), high - low)):
        warn_once(
            path,
            "display range",
            f"has values from {first:g} to {last:g} and a display range from {low:g} to {high:g}: it is ignored",
        )
        return None
    return low, high
