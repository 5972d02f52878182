"""Computation of features of images by a frozen vision tower, and their storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

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
