"""Base class of datasets of echocardiograms: images of two phases of the beat, and volumes of the left ventricle."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.contents import UNITS
from mllm.dataset.base import AugmentedDataset
from mllm.dataset.tables.values import is_empty, number_in
from mllm.errors import DataError, UserError, with_location
from mllm.structures import IMAGE, Sample, Turn

ED, ES = "ED", "ES"
"""Names of the images at end diastole and end systole."""
MEASURES = ("EF", "EDV", "ESV")
PHASES = {ED: "end diastole", ES: "end systole"}
FRAMES_NEEDED = (
    "DICOM cines and videos do not mark the end-diastolic and end-systolic frames: set their numbers, counted from 0"
)
"""Part of the message about missing frame numbers."""


def conversation(views: Sequence[str], measures: Mapping[str, float]) -> list[Turn]:
    """Return a question about the known measures of an echocardiogram, and the answer with values and units.

    Args:
        views: Names of the images: a phase, or a chamber view and a phase (`ED`, `4CH ED`).
        measures: Values by name; NaN where unknown.
    """
    images = []
    for view in views:
        chambers, _, phase = view.rpartition(" ")
        images.append(f"{IMAGE} {chambers + ', ' if chambers else ''}{PHASES[phase]}")
    known = {name: value for name, value in measures.items() if not math.isnan(value)}
    names = ", ".join(f"{name} ({UNITS[name]})" for name in known)
    answer = ", ".join(f"{name} {value:.1f} {UNITS[name]}" for name, value in known.items())
    question = f"Echocardiogram: {'; '.join(images)}. Give {names}."
    return [Turn("user", question), Turn("assistant", f"{answer}.")]


def known_number(value: Any, field: str) -> float:
    """Return the value of a measure in a row; NaN if it is empty, NaN, infinite, or not above 0.

    Raises:
        DataError: The value is not a number.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    number = number_in(value)
    if math.isnan(number) and not is_empty(value):
        raise DataError(f"field '{field}' must be a number, not {value!r}")
    return number if math.isfinite(number) and number > 0 else math.nan


def format_counts(counts: Mapping[str, int]) -> str:
    """Return the counts above 0 as text: `2 without two traced frames, 1 beyond size=100`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)


def count_unknown(rows: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Return the number of rows in which each measure is unknown."""
    return {name: sum(math.isnan(measures[name]) for measures in rows) for name in MEASURES}


def summarize_differences(differences: Sequence[float]) -> dict[str, float]:
    """Return mean and maximum of absolute differences; NaN if there are none."""
    return {
        "mean": float(np.mean(differences)) if differences else math.nan,
        "largest": max(differences, default=math.nan),
    }


class CineDataset(AugmentedDataset):
    """Base class of datasets of studies with one image at end diastole and one at end systole.

    Geometric transforms use the same draw for all images of a study.
    """

    @abstractmethod
    def views(self, index: int) -> dict[str, Image]:
        """Return the images of a study, RGB, by name."""

    @abstractmethod
    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        """Return EF in percent, EDV and ESV in mL; NaN where unknown."""

    def files(self, index: int) -> list[Path]:
        """Return the files of the images of a study; empty for generated images."""
        return []

    @override
    def inspect(self, index: int) -> Sample:
        try:
            for path in self.files(index):
                if not path.is_file():
                    raise DataError(f"{path} does not exist")
            return Sample(turns=[], group=self.group(index), measures=self.measures(index))
        except UserError as error:
            raise with_location(error, self.describe(index)) from error

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the images with the measures; messages of errors begin with the location of the row."""
        source = self.describe(index)
        try:
            views, measures = self.views(index), self.measures(index)
        except UserError as error:
            raise with_location(error, source) from error
        sample = Sample(
            turns=conversation(list(views), measures),
            images=list(views.values()),
            files=[path.name for path in self.files(index)],
            views=list(views),
            measures=measures,
            group=self.group(index),
            source=source,
        )
        return self.augment(sample, index, epoch)
