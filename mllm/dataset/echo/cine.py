"""What datasets of echocardiograms share: two pictures of the beat by name, and the volumes of the left ventricle."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.dataset.base import AugmentedDataset
from mllm.errors import ConfigError, DataError, UserError, with_location
from mllm.structures import IMAGE, UNITS, Sample, Turn

ED, ES = "ED", "ES"
"""The names of the pictures at end diastole and end systole."""
MEASURES = ("EF", "EDV", "ESV")
MOMENTS = {ED: "end diastole", ES: "end systole"}
FRAMES_NEEDED = (
    "neither a DICOM cine nor a video says which of its frames are end-diastolic and end-systolic: give their numbers, "
    "counted from 0"
)
"""What is to be told where frames are not named."""


def conversation(views: Sequence[str], measures: Mapping[str, float]) -> list[Turn]:
    """A question about the known measures of an echocardiogram, and their values with units as its answer.

    A view is called by a moment, or by a chamber view and a moment: `ED`, `4CH ED`.
    """
    pictures = []
    for view in views:
        chambers, _, moment = view.rpartition(" ")
        pictures.append(f"{IMAGE} {chambers + ', ' if chambers else ''}{MOMENTS[moment]}")
    known = {name: value for name, value in measures.items() if not math.isnan(value)}
    asked = ", ".join(f"{name} ({UNITS[name]})" for name in known)
    answer = ", ".join(f"{name} {value:.1f} {UNITS[name]}" for name, value in known.items())
    question = f"Echocardiogram: {'; '.join(pictures)}. Give {asked}."
    return [Turn("user", question), Turn("assistant", f"{answer}.")]


def known_number(value: Any, field: str) -> float:
    """A measure as a row has it; NaN where it is empty, not a number by its own word, infinite, or not above 0.

    Raises `DataError` for what is no number at all.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"field '{field}' is no number: {value!r}") from None
    return number if math.isfinite(number) and number > 0 else math.nan


def counted(counts: Mapping[str, int]) -> str:
    """`2 without two traced frames, 1 beyond size=100`; nothing that was not met."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


class CineDataset(AugmentedDataset):
    """Examinations with a picture at end diastole and one at end systole; a subclass says where they are.

    `transforms` are entries of TRANSFORMS as dicts with their `type`, drawn anew in every epoch from
    (seed, epoch, index); what moves pixels draws the same for all pictures of an examination.
    """

    @abstractmethod
    def views(self, index: int) -> dict[str, Image]:
        """The pictures of an examination, RGB, by name."""

    @abstractmethod
    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        """EF in percent, EDV and ESV in mL; NaN where unknown."""

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The pictures with the measures; every `DataError` begins with the row's place."""
        place = self.describe(index)
        try:
            views, measures = self.views(index), self.measures(index)
        except UserError as error:
            raise with_location(error, place) from error
        sample = Sample(
            turns=conversation(list(views), measures),
            images=list(views.values()),
            views=list(views),
            measures=measures,
            group=self.group(index),
            source=place,
        )
        return self.augment(sample, index, epoch)

    def checked(self, index: int) -> int:
        """The index from 0, also where it counts from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return int(index) % len(self)


def drawn(count: int, size: int | None, seed: int) -> list[int]:
    """Which of `count` rows are used: all, or at most `size` of them, drawn by `seed`, in their order."""
    if size is not None and size < 1:
        raise ConfigError(f"size must be at least 1, not {size}")
    if size is None or size >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:size].tolist())
