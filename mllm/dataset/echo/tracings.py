"""Tracings of EchoNet-Dynamic and EchoNet-Pediatric: the traced frames, and the area of the ventricle in them."""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm.dataset.tables.text_files import open_text
from mllm.errors import DataError

CHORDS = ["FileName", "X1", "Y1", "X2", "Y2", "Frame"]
"""First line of `VolumeTracings.csv` of EchoNet-Dynamic."""
POINTS = ["FileName", "X", "Y", "Frame"]
"""First line of `VolumeTracings.csv` of EchoNet-Pediatric: points of the outline, in order."""
UNTRACED = ("No Systolic", "No Diastolic", "")
"""Values of the column `Frame` of EchoNet-Pediatric for phases that are not traced."""
_MIN_LINES = 3
"""Minimum number of lines of a tracing: the long axis and two chords, or three points."""
_SUFFIXES = (".avi", ".mp4", ".mov", ".mkv")


@dataclass(frozen=True)
class Tracing:
    """Traced ventricle in one frame."""

    frame: int
    """Number of the frame, from 0."""
    area: float
    """Area of the polygon in square pixels."""
    line: int
    """First line of the tracing in the file."""


def stem(name: str) -> str:
    """Return the name of a video without the suffix of a video file: only one of the two tables has it."""
    name = name.strip()
    return name[:-4] if name.lower().endswith(_SUFFIXES) else name


def read_tracings(path: Path, names: Container[str]) -> tuple[dict[str, list[Tracing]], dict[str, str]]:
    """Read the tracings of the selected videos, in the order of the file.

    The first line of a frame is the long axis, the others are chords from the apex to the mitral valve. The polygon
    connects their first ends and returns along their second ends. The lines of EchoNet-Pediatric are the points of the
    polygon. Frames with fewer than three lines are skipped.

    Args:
        path: `VolumeTracings.csv`.
        names: Names of the videos, without suffix.

    Returns:
        The tracings of each video, and the error of each video of which a line is malformed.

    Raises:
        DataError: The file cannot be read, or has another first line.
    """
    chords: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    first_lines: dict[tuple[str, int], int] = {}
    errors: dict[str, str] = {}
    for line, name, frame, ends in _lines(path, names, errors):
        first_lines.setdefault((name, frame), line)
        chords.setdefault((name, frame), []).append(ends)
    tracings: dict[str, list[Tracing]] = {}
    for (name, frame), lines in chords.items():
        if len(lines) >= _MIN_LINES:
            points = np.array(lines)
            area = polygon_area(points if points.shape[1] == 2 else outline(points))
            tracing = Tracing(frame, area, first_lines[name, frame])
            tracings.setdefault(name, []).append(tracing)
    return tracings, errors


def _lines(
    path: Path, names: Container[str], errors: dict[str, str]
) -> Iterator[tuple[int, str, int, tuple[float, ...]]]:
    """Yield line number, video, frame and x1 y1 x2 y2 or x y of the rows of the selected videos.

    The first error of a video is added to `errors`.
    """
    try:
        with open_text(path) as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header not in (CHORDS, POINTS):
                raise DataError(f"{path}, line 1: must be {','.join(CHORDS)}, not {','.join(header)}")
            for row in reader:
                if not row or (name := stem(row[0])) not in names:
                    continue
                if header == POINTS and len(row) == len(POINTS) and row[-1].strip() in UNTRACED:
                    continue
                try:
                    coordinates = tuple(float(value) for value in row[1 : len(header) - 1])
                    frame = int(row[len(header) - 1])
                    if not all(map(math.isfinite, coordinates)):
                        raise ValueError("the area would be NaN")
                except (ValueError, IndexError):
                    count = "four" if header == CHORDS else "two"
                    fault = f"must have {count} coordinates and the number of a frame"
                    errors.setdefault(name, f"{path}, line {reader.line_num}: {fault}")
                    continue
                yield reader.line_num, name, frame, coordinates
    except (OSError, EOFError, zlib.error, UnicodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def outline(lines: np.ndarray) -> np.ndarray:
    """Return the polygon [2 * chords, 2] of the lines [1 + chords, 4] of a tracing, without the long axis."""
    return np.concatenate([lines[1:, :2], lines[:0:-1, 2:]])


def polygon_area(points: np.ndarray) -> float:
    """Return the area of a polygon [N, 2] by the shoelace formula."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
