"""Reader of slices of MetaImage and NRRD volumes, the formats of ITK and 3D Slicer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mllm.dataset.readers import metaimage, nrrd
from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.gray import Choice
from mllm.dataset.readers.guarded import call_guarded
from mllm.dataset.readers.stored_volume import StoredVolume
from mllm.dataset.readers.volumes import (
    CHEAP_BYTES,
    Orientation,
    VoxelSides,
    choose_planes,
    find_axis,
    plane_images,
    plane_of,
)
from mllm.dataset.readers.windows import Window, Windowing, find_window
from mllm.errors import ConfigError
from mllm.registry import READERS

_METAIMAGE = (".mha", ".mhd")


@READERS.register_module(name=[".mha", ".mhd", ".nrrd", ".nhdr"])
def read(
    path: Path,
    *,
    axis: str | int = "axial",
    slice: Choice = "middle",
    volume: int = 0,
    window: Window = None,
    square: bool = True,
) -> list[Image.Image]:
    """Read slices of a volume as RGB images, in the radiological convention of NIfTI.

    The directions of the header lead to the patient's left, back and head. A 2D image is one axial slice. Volumes of
    over 128 MiB are read in the guarded process. See `metaimage` and `nrrd` for the forms that are read.

    Args:
        path: The file with the header.
        axis: 'axial', 'coronal', 'sagittal', or an axis of the RAS+ volume: 0 (sagittal), 1 (coronal), 2 (axial).
        slice: Slices along the axis, from 0 (left, back, bottom): an index, a list, 'first', 'middle', 'last', 'all'.
        volume: Index in a 4D series.
        window: As for NIfTI; None: the full range of the volume.
        square: False: return the stored pixels, for boxes and masks that refer to them.
    """
    find_window(window)
    find_axis(axis)
    if isinstance(volume, bool) or not isinstance(volume, (int, np.integer)):
        raise ConfigError(f"volume={volume!r} must be an index from 0")
    header = (metaimage if path.suffix.lower() in _METAIMAGE else nrrd).read_header(path)
    if not 0 <= volume < header.volumes:
        raise unusable(header.path, f"has no volume {volume}: it has {header.volumes}, from 0 to {header.volumes - 1}")
    size = header.bytes_until(int(volume))
    if size <= CHEAP_BYTES:
        return list(slices(header, axis, slice, int(volume), window, square))
    return call_guarded(f"{__name__}:slices", header, axis, slice, int(volume), window, square, size=size)


def slices(
    header: StoredVolume, axis: str | int, slice: Choice, volume: int, window: Window, square: bool
) -> Iterator[Image.Image]:
    """Yield slices of a volume as RGB images; see `read`."""
    windowing, normal, path = find_window(window), find_axis(axis), header.path
    orientation = Orientation.of(header.directions)
    values = orientation.apply(header.read(volume))
    if len(windowing.limits) <= 1:
        windowing = Windowing((windowing.range_of(values, path),))
    indices = choose_planes(slice, values.shape, normal, path)
    planes = (plane_of(values, normal, index) for index in indices)
    sides = VoxelSides(np.array(header.spacing)[list(orientation.order)], header.in_mm)
    yield from plane_images(planes, partial(windowing.apply, path=path), sides, normal, path, square)
