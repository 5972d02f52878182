"""Reader of a series of DICOM slices as one volume: a folder, or a list of files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mllm.dataset.readers.dicom import damage_refused, frame_header
from mllm.dataset.readers.dicom_frames import decode, is_dicom, is_image_name
from mllm.dataset.readers.dicom_gray import apply_voi, default_range, drop_impossible_rescale, to_values
from mllm.dataset.readers.dicom_slices import Stack, read_stack
from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.gray import Choice, choose, exact_floats, percentile_range
from mllm.dataset.readers.guarded import call_guarded, report_progress
from mllm.dataset.readers.pixel_limit import check_selected
from mllm.dataset.readers.volumes import CHEAP_BYTES, MAX_VOXELS, choose_planes, find_axis, plane_images, plane_of
from mllm.dataset.readers.windows import Limits, Window, Windowing, find_window
from mllm.registry import READERS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SAMPLED = 32
"""Maximum number of slices of which the gray values of a series are computed."""


@READERS.register_module(name="DICOM series")
def read(
    path: Path | Sequence[Path],
    *,
    axis: str | int | None = None,
    slice: Choice = "middle",
    window: Window = None,
    square: bool = True,
) -> list[Image.Image]:
    """Read slices of a volume from the files of a DICOM series as RGB images.

    Slices are sorted by their position along the normal of their plane; frames of enhanced multi-frame files count as
    slices. The volume is reoriented to RAS+ (axes to the right, front and head), to the nearest axes, and slices are in
    radiological convention, as those of NIfTI. All slices have one map from values to gray: `window`, else the window
    of the files if it is the same in all of them, else -1024 to 1024 for CT in Hounsfield units, and the 0.5th to the
    99.5th percentile for others. MONOCHROME1 is inverted and padding is black. Only the files of the selected slices
    are decoded if these are slices of the acquisition.

    Args:
        path: A folder, all DICOM files of which are slices of one series (subfolders are not searched), or the files.
        axis: 'axial', 'coronal', 'sagittal', or an axis of the RAS+ volume: 0 (sagittal), 1 (coronal), 2 (axial).
            None: that of the acquired slices.
        slice: Slices along the axis, from 0 (left, back, bottom): an index, a list, 'first', 'middle', 'last', 'all'.
        window: As for DICOM files.
        square: False: return the stored pixels, for boxes and masks that refer to them.

    Raises:
        DataError: The files are of several series, positions are missing or repeated, slices are not parallel or have
            different sizes, or a file cannot be decoded.
    """
    find_window(window)
    files = find_files(path) if isinstance(path, Path) else list(path)
    folders = {file.parent for file in files}
    name = path if isinstance(path, Path) else folders.pop() if len(folders) == 1 else files[0]
    with damage_refused(name):
        stack = read_stack(files, name)
        normal = stack.normal if axis is None else find_axis(axis)
        voxels = math.prod(stack.shape)
        if voxels > MAX_VOXELS:
            raise unusable(name, f"is a volume of more than {MAX_VOXELS:,} voxels")
        size = voxels * np.dtype(np.float32).itemsize
        if normal == stack.normal or size <= CHEAP_BYTES:
            return list(slices(files, name, axis, slice, window, square))
    return call_guarded(f"{__name__}:slices", files, name, axis, slice, window, square, size=size)


def find_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder in the order of their names, without its directory file and hidden files."""
    entries = sorted(entry for entry in folder.iterdir() if is_image_name(entry.name) and entry.is_file())
    files = [entry for entry in entries if is_dicom(entry)]
    if not files:
        raise unusable(folder, "is a folder without DICOM files; its subfolders are not searched")
    return files


def slices(
    files: Sequence[Path], path: Path, axis: str | int | None, slice: Choice, window: Window, square: bool
) -> Iterator[Image.Image]:
    """Yield slices of a series as RGB images; see `read`."""
    with damage_refused(path):
        windowing = find_window(window)
        stack = read_stack(files, path)
        normal = stack.normal if axis is None else find_axis(axis)
        show = _gray_map(stack, windowing)
        if normal == stack.normal:
            order = stack.sorted_numbers()
            indices = choose(slice, len(order), path, "slice", "slice")
            check_selected(path, len(indices), *stack.shape[:2])
            planes = [_plane(stack, order[index], windowing) for index in indices]
        else:
            stack.check_straight()
            volume = stack.orientation.apply(_volume(stack, windowing))
            indices = choose_planes(slice, volume.shape, normal, path)
            planes = [plane_of(volume, normal, index) for index in indices]
        yield from plane_images(planes, show, stack.sides, normal, path, square)


def _plane(stack: Stack, number: int, windowing: Windowing) -> np.ndarray:
    """Return an acquired slice in radiological convention, [row, column]."""
    values = _values(stack, number, windowing)
    return plane_of(stack.orientation.apply(values.T[:, :, None]), stack.normal, 0)


def _volume(stack: Stack, windowing: Windowing) -> np.ndarray:
    """Return all slices, [column, row, slice]."""
    volume = np.empty(stack.shape, np.float32)
    for number in range(len(stack.slices)):
        values = exact_floats(_values(stack, number, windowing))
        volume = volume.astype(np.promote_types(volume.dtype, values.dtype), copy=False)
        volume[:, :, number] = values.T
        report_progress()
    return volume


def _values(stack: Stack, number: int, windowing: Windowing) -> np.ndarray:
    """Return the values of a slice after the rescale, [row, column]; padding is NaN, which is shown black."""
    part = stack.slices[number]
    (stored,) = decode(part.file, part.header, [part.frame])
    if stored.shape != (stack.shape[1], stack.shape[0]):
        raise unusable(part.file, "is in color or has another size than its header: it is no slice of a volume")
    # The header is kept for later reads, and an impossible rescale is removed from it.
    values, padding = to_values(stored, frame_header(part.header, 0), part.file, windowing)
    return np.where(padding, np.nan, values) if padding.any() else values


def _gray_map(stack: Stack, windowing: Windowing) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that maps values of all slices to [0, 1]."""
    header, path = frame_header(stack.slices[0].header, 0), stack.path
    drop_impossible_rescale(header, stack.slices[0].file)
    show: Callable[[np.ndarray], np.ndarray]
    if windowing.limits:
        show = partial(windowing.apply, path=path)
    elif not windowing.by_percentiles and stack.has_one_window() and "WindowWidth" in header:
        show = partial(_apply_header, header=header, path=path)
    else:
        show = partial(Windowing((_sampled_range(stack, windowing),)).apply, path=path)
    if header.PhotometricInterpretation != "MONOCHROME1":
        return show
    return lambda values: 1 - show(values)


def _apply_header(values: np.ndarray, header: Dataset, path: Path) -> np.ndarray:
    """Map values to [0, 1] by the window of a header; NaN stays NaN."""
    padding = np.isnan(values)
    unit = apply_voi(np.where(padding, 0, values) if padding.any() else values, header, padding, path)
    return np.where(padding, np.nan, unit)


def _sampled_range(stack: Stack, windowing: Windowing) -> Limits:
    """Return the range of gray values that is shown of a series, from evenly spaced slices."""
    count = len(stack.slices)
    sampled = min(count, _SAMPLED)
    values = [_values(stack, number * count // sampled, windowing).reshape(-1) for number in range(sampled)]
    header = stack.slices[0].header
    if windowing.by_percentiles or header.get("Modality") != "CT":
        return percentile_range(np.concatenate(values))
    return default_range(np.concatenate(values), header, stack.path)
