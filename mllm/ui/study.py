"""Files that a person dropped on the page, and the pictures in them: frames, slices, pages and windows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from mllm.dataset.readers import count_images, read_images, reads_option
from mllm.dataset.readers.dicom_frames import has_dicom_content
from mllm.dataset.readers.notices import unlogged
from mllm.dataset.readers.windows import PERCENTILES, WINDOWS
from mllm.errors import DataError, UserError

Window: TypeAlias = "str | tuple[float, float] | None"
"""None: as the file shows it; a name; or (center, width)."""
AXES = ("axial", "coronal", "sagittal")
_NOUNS = {"frames": "frame", "slice": "slice", "page": "page"}
_LOWEST, _HIGHEST = -1024.0, 3071.0
"""Lowest and highest value of a CT, in Hounsfield units."""
_AIR = -100.0
"""Value in Hounsfield units below which there is air or fat in a slice."""
_WIDEST = 2.0**17
"""Larger than all values of 16 bits with their rescale."""
_LEVELS = 255


@dataclass(frozen=True)
class View:
    """Choice of a picture of a study."""

    index: int = 0
    """Frame, slice or page, from 0."""
    axis: str | None = None
    """One of `AXES`; None: the axis of the file."""
    window: Window = None


@dataclass(frozen=True)
class Study:
    """Opened file, or DICOM series, with the pictures that it has."""

    source: Path | tuple[Path, ...]
    option: str
    """Option of the reader that selects a picture: 'frames', 'slice' or 'page'."""
    count: int
    """Number of pictures along `axis`."""
    axis: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the file, or the number of files of a series."""
        return dropped_name(self.source) if isinstance(self.source, Path) else f"series of {len(self.source)} files"

    @property
    def noun(self) -> str:
        """Return the name of one of its pictures."""
        return _NOUNS[self.option]

    @property
    def is_volume(self) -> bool:
        """Return True if it can be cut along other axes."""
        return reads_option(self.source, "axis")

    @property
    def first_view(self) -> View:
        """Return the view that is shown first: the middle of a volume, and the first picture of others."""
        return View(self.count // 2 if self.option == "slice" else 0, self.axis)

    @cached_property
    def windows(self) -> tuple[str, ...]:
        """Return the names of windows that it accepts; none for color pictures and videos."""
        if not reads_option(self.source, "window") or not self._accepts(PERCENTILES):
            return ()
        return (PERCENTILES, *(WINDOWS if self._is_ct else ()))

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Return about the lowest and the highest gray value, for sliders."""
        low, high = self._limits_of_first_view
        return (min(low, _LOWEST), max(high, _HIGHEST)) if self._is_ct else (low, high)

    @cached_property
    def _limits_of_first_view(self) -> tuple[float, float]:
        return _gray_limits(self)

    @cached_property
    def _is_ct(self) -> bool:
        """Return True for Hounsfield units. NIfTI states no unit: there a value far below 0 stands for air."""
        return self._accepts("lung") and self._limits_of_first_view[0] < _AIR

    def along(self, axis: str | None) -> Study:
        """Return the volume with the pictures along another axis."""
        _, count = count_images(self.source, **({} if axis is None else {"axis": axis}))
        return replace(self, count=count, axis=axis)

    def picture(self, view: View) -> Image.Image:
        """Return a picture in RGB. Raise `UserError` if it cannot be read."""
        return self._read(view.index, view.axis, view.window)

    def caption(self, view: View) -> str:
        """Return the name of the file, and the part of it that a view shows."""
        parts = [self.name]
        if self.count > 1:
            parts.append(f"{self.noun} {view.index + 1} of {self.count}")
        if view.axis is not None:
            parts.append(view.axis)
        if view.window is not None:
            named = isinstance(view.window, str)
            parts.append(f"window {view.window}" if named else "window {:g}, {:g}".format(*view.window))
        return ", ".join(parts)

    def _read(self, index: int, axis: str | None, window: Any) -> Image.Image:
        options: dict[str, Any] = {self.option: index}
        options |= {} if axis is None else {"axis": axis}
        options |= {} if window is None else {"window": window}
        # Warnings name the file, and nothing about a patient is logged.
        with unlogged():
            (image,) = read_images(self.source, **options)
        return image

    def _accepts(self, window: Window) -> bool:
        try:
            self._read(self.first_view.index, self.axis, window)
        except UserError:
            return False
        return True


def open_study(files: Sequence[str | Path]) -> Study:
    """Return the study of a file, or of the files of a DICOM series.

    Raises:
        UserError: A file cannot be read, or several files are not one DICOM series. The sentence has no folder.
    """
    if not files:
        raise DataError("no file was dropped")
    paths = tuple(Path(file) for file in files)
    source = paths[0] if len(paths) == 1 else paths
    try:
        with unlogged():
            if len(paths) > 1 and not all(has_dicom_content(path) for path in paths):
                raise DataError(f"{len(paths)} files were dropped: drop one file, or the DICOM files of one series")
            option, count = count_images(source)
            study = Study(source, option, count)
            study.picture(study.first_view)
    except UserError as error:
        raise DataError(without_folders(str(error), paths)) from error
    return study


def without_folders(message: str, paths: Sequence[Path]) -> str:
    """Return a message with the names of files in place of their paths, which are temporary."""
    named = [path for path in paths if path.name in message]
    names = {name: dropped_name(path) for path in named for name in (str(path), path.name)}
    # A name can be the end of another one, so names are replaced at once, the longest first, and as whole words.
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    pattern = rf"(?<![\w.-])(?:{'|'.join(longest_first)})(?![\w-]|\.\w)"
    message = re.sub(pattern, lambda match: names[match[0]], message) if names else message
    return message.replace(str(paths[0].parent), "the series")


def dropped_name(path: Path) -> str:
    """Return the name of a file as it was dropped: a session writes `NUMBER_` before it."""
    number, _, name = path.name.partition("_")
    return name if number.isdecimal() and name else path.name


def _gray_limits(study: Study) -> tuple[float, float]:
    """Return about the lowest and the highest gray value of the first view.

    Readers return 8 bits, so the range is narrowed in steps: each picture of a linear window shows it 100 times as
    precisely.
    """
    view = study.first_view

    def levels(center: float, width: float) -> tuple[int, int]:
        gray = study._read(view.index, view.axis, (center, width)).convert("L").tobytes()
        return min(gray), max(gray)

    inverted = levels(-4 * _WIDEST, 1.0)[0] == 0
    low, high = -_WIDEST, _WIDEST
    for _ in range(3):
        step = (high - low) / _LEVELS
        darkest, brightest = levels((low + high) / 2, high - low)
        if inverted:
            darkest, brightest = _LEVELS - brightest, _LEVELS - darkest
        low, high = low + (darkest - 1) * step, low + (brightest + 1) * step
    digits = 0 if high - low > _LEVELS else 3
    return round(low, digits), round(high, digits)
