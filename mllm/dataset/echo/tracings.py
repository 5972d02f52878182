"""EchoNet-Dynamic's tracings: which frames of a video an expert has traced, and how large the ventricle is in them."""

from __future__ import annotations

import csv
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm.errors import DataError

HEADER = ["FileName", "X1", "Y1", "X2", "Y2", "Frame"]
"""The first line of `VolumeTracings.csv`, which must be exactly so."""
_FEWEST = 3
"""Lines of a tracing that has an area: the long axis and two chords."""


@dataclass(frozen=True)
class Tracing:
    """The traced ventricle of one frame."""

    frame: int
    """From 0."""
    area: float
    """Square pixels of the polygon."""
    line: int
    """The line of the file on which it begins."""


def stem(name: str) -> str:
    """The name of a video without `.avi`, which the two tables write differently."""
    name = name.strip()
    return name[:-4] if name.lower().endswith(".avi") else name


def read_tracings(path: Path, wanted: Container[str]) -> dict[str, list[Tracing]]:
    """The tracings of the `wanted` videos (names without suffix), in the order of the file.

    A frame's first line is the long axis, the others are chords from the apex to the mitral valve; the polygon runs
    along their first ends and back along their second ones. Frames with fewer than two chords are not traced. Raises
    `DataError` with file and line for what is malformed.
    """
    chords: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    begins: dict[tuple[str, int], int] = {}
    for line, name, frame, ends in _lines(path, wanted):
        begins.setdefault((name, frame), line)
        chords.setdefault((name, frame), []).append(ends)
    found: dict[str, list[Tracing]] = {}
    for (name, frame), lines in chords.items():
        if len(lines) >= _FEWEST:
            tracing = Tracing(frame, polygon_area(outline(np.array(lines))), begins[name, frame])
            found.setdefault(name, []).append(tracing)
    return found


def _lines(path: Path, wanted: Container[str]) -> Iterator[tuple[int, str, int, tuple[float, ...]]]:
    """Line, video, frame and x1 y1 x2 y2 of the rows of the wanted videos."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header != HEADER:
                raise DataError(f"{path}, line 1: must be {','.join(HEADER)}, not {','.join(header)}")
            for row in reader:
                if not row or (name := stem(row[0])) not in wanted:
                    continue
                try:
                    x1, y1, x2, y2 = (float(value) for value in row[1:5])
                    frame = int(row[5])
                    if not all(map(math.isfinite, (x1, y1, x2, y2))):
                        raise ValueError("an area of NaN is neither the larger nor the smaller one")
                except (ValueError, IndexError):
                    raise DataError(
                        f"{path}, line {reader.line_num}: needs four coordinates and the number of a frame"
                    ) from None
                yield reader.line_num, name, frame, (x1, y1, x2, y2)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def outline(lines: np.ndarray) -> np.ndarray:
    """The polygon [2 * chords, 2] of a tracing's lines [1 + chords, 4], the long axis left out."""
    return np.concatenate([lines[1:, :2], lines[:0:-1, 2:]])


def polygon_area(points: np.ndarray) -> float:
    """The area of a polygon [N, 2] by the shoelace formula."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
