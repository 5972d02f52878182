"""Echocardiograms drawn when they are asked for, with volumes that are known exactly: need no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from typing_extensions import override

from mllm.dataset.echo.cine import MOMENTS, CineDataset
from mllm.dataset.phantoms.echo import Echo, Probe
from mllm.dataset.phantoms.heart import Heart, draw_heart
from mllm.errors import ConfigError
from mllm.registry import DATASETS

_SMALLEST = 48
"""Pixels of a side below which a ventricle is a few pixels wide."""


@DATASETS.register_module()
class PhantomEchoDataset(CineDataset):
    """The end-diastolic and end-systolic four-chamber picture of generated hearts, as `EchoNetDataset` gives them.

    Patient i depends on (seed, i) alone. `image_size` is in pixels; `depth` in mm is that of the sector, from and to:
    where it is the same for all, volumes can be read off the pictures, as no scale is drawn into them.
    """

    seed_from = "split"

    def __init__(
        self,
        size: int = 64,
        seed: int = 0,
        image_size: int = 112,
        depth: tuple[float, float] = (148.0, 165.0),
        transforms: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(transforms, seed)
        if size < 1:
            raise ConfigError(f"size must be at least 1, not {size}")
        if image_size < _SMALLEST:
            raise ConfigError(f"image_size must be at least {_SMALLEST}, not {image_size}")
        if len(depth) != 2 or not 100 <= depth[0] <= depth[1] <= 250:
            raise ConfigError(f"depth must be two lengths in mm between 100 and 250, not {depth}")
        self.size, self.image_size, self.depth = size, image_size, depth

    def __len__(self) -> int:
        return self.size

    @override
    def views(self, index: int) -> dict[str, Image.Image]:
        """The two pictures of a patient."""
        heart, rng = self._heart(index)
        echo = Echo(heart, Probe(self.image_size, float(rng.uniform(*self.depth))), rng)
        pictures = (echo.frame(phase) for phase in (0.0, 1.0))
        return {
            moment: Image.fromarray(picture).convert("RGB") for moment, picture in zip(MOMENTS, pictures, strict=True)
        }

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        return self._heart(index)[0].measures

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return f"PhantomEchoDataset(seed={self.seed}), patient {self.checked(index)}"

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return f"heart {self.seed}-{self.checked(index)}"

    def _heart(self, index: int) -> tuple[Heart, np.random.Generator]:
        """A patient, and the generator from which the pictures are drawn."""
        rng = np.random.default_rng((self.seed, self.checked(index)))
        return draw_heart(rng), rng
