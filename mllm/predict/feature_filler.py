"""Computation of features of images by a frozen vision tower, and their storage."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from torch.utils.data import Dataset
from typing_extensions import override

from mllm.dataset.base import SampleDataset
from mllm.engine.cache_room import CacheRoom
from mllm.engine.feature_cache import FeatureCache
from mllm.engine.feature_computer import FeatureComputer
from mllm.errors import UserError
from mllm.models.encoding.chat import ChatEncoder
from mllm.protocols import Bundle
from mllm.structures import Encoded

Draws = Sequence[tuple[SampleDataset, int, int]]
"""Samples as dataset, row and epoch."""


class RowDraws(Draws):
    """Samples of rows in epoch 0, in 12 bytes a row.

    Args:
        rows: Dataset and index of each row.
    """

    def __init__(self, rows: Iterable[tuple[SampleDataset, int]]) -> None:
        self._datasets: list[SampleDataset] = []
        self._numbers, self._indices = array("I"), array("q")
        known: dict[int, int] = {}
        for dataset, index in rows:
            number = known.setdefault(id(dataset), len(known))
            if number == len(self._datasets):
                self._datasets.append(dataset)
            self._numbers.append(number)
            self._indices.append(index)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, number: int) -> tuple[SampleDataset, int, int]: ...
    @overload
    def __getitem__(self, number: slice) -> list[tuple[SampleDataset, int, int]]: ...
    @override
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        return self._datasets[self._numbers[number]], self._indices[number], 0


@dataclass
class Counts:
    """Numbers of samples with images."""

    found: int = 0
    computed: int = 0
    without_room: int = 0


@dataclass(frozen=True)
class ImageSample:
    """The images of a sample."""

    path: Path
    """File of their features."""
    encoded: Encoded | None
    """The sample with its pixels; None if the features are stored."""


class MissingImages(Dataset[Any]):
    """Images of samples for the vision tower; None for a row without images, and for one that cannot be used."""

    def __init__(self, draws: Draws, encoder: ChatEncoder, cache: FeatureCache) -> None:
        self.draws, self.encoder, self.cache = draws, encoder, cache

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> ImageSample | None:
        split, index, epoch = self.draws[number]
        try:
            sample = split.sample(index, epoch)
            if not sample.images:
                return None
            path = self.cache.path(sample.images)
            return ImageSample(path, None if path.is_file() else self.encoder.prompt(sample))
        except UserError:
            return None  # training and evaluation report it, or skip the row


class Filler:
    """Computation of features of images, and their storage."""

    def __init__(self, bundle: Bundle, cache: FeatureCache, room: CacheRoom) -> None:
        self.computer, self.cache, self.room = FeatureComputer(bundle), cache, room
        self.counts = Counts()

    def add(self, images: ImageSample) -> None:
        """Compute and store the features of the images of one sample, if they are missing and there is room."""
        if images.encoded is None or images.path.is_file():
            self.counts.found += 1
            return
        features = self.computer.features(images.encoded)
        if features is None:
            return
        if self.room.take(sum(tensor.numel() * tensor.element_size() for tensor in features.values())):
            self.cache.store(images.path, features)
            self.counts.computed += 1
        else:
            self.counts.without_room += 1
