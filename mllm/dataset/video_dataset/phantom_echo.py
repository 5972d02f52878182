"""Generated echocardiograms with exactly known volumes, without files."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from typing_extensions import override

from mllm.dataset.echo.cine import PHASES, CineDataset
from mllm.dataset.indices import from_zero
from mllm.dataset.phantoms.echo import Echo, Probe
from mllm.dataset.phantoms.heart import Heart, draw_heart
from mllm.errors import ConfigError
from mllm.registry import DATASETS

_MIN_SIZE = 48
"""Minimum side in pixels; in smaller images a ventricle is only a few pixels wide."""


@DATASETS.register_module()
class PhantomEchoDataset(CineDataset):
    """End-diastolic and end-systolic four-chamber images of generated hearts, as in `EchoNetDataset`.

    Patient i is a function of (seed, i).

    Args:
        size: Number of patients.
        seed: Seed of the patients.
        image_size: Side of the images in pixels.
        depth: Range of the depth of the sector in mm. The images have no scale: only with a constant depth do they
            determine the volumes.
        options: `transforms` of `AugmentedDataset`.
    """

    reads_files = False
    seed_from = "split"

    def __init__(
        self,
        size: int = 64,
        seed: int = 0,
        image_size: int = 112,
        depth: tuple[float, float] = (148.0, 165.0),
        **options: Any,
    ) -> None:
        super().__init__(seed=seed, **options)
        if size < 1:
            raise ConfigError(f"size must be at least 1, not {size}")
        if image_size < _MIN_SIZE:
            raise ConfigError(f"image_size must be at least {_MIN_SIZE}, not {image_size}")
        if len(depth) != 2 or not 100 <= depth[0] <= depth[1] <= 250:
            raise ConfigError(f"depth must be two lengths in mm between 100 and 250, not {depth}")
        self.size, self.image_size, self.depth = size, image_size, depth

    def __len__(self) -> int:
        return self.size

    @override
    def views(self, index: int) -> dict[str, Image.Image]:
        """Return the two images of a patient."""
        heart, rng = self._heart(index)
        echo = Echo(heart, Probe(self.image_size, float(rng.uniform(*self.depth))), rng)
        frames = (echo.frame(phase) for phase in (0.0, 1.0))
        return {phase: Image.fromarray(frame).convert("RGB") for phase, frame in zip(PHASES, frames, strict=True)}

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        return self._heart(index)[0].measures

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return f"PhantomEchoDataset(seed={self.seed}), patient {from_zero(index, len(self))}"

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return f"heart {self.seed}-{from_zero(index, len(self))}"

    def _heart(self, index: int) -> tuple[Heart, np.random.Generator]:
        """Return the heart of a patient, and the random generator of its images."""
        rng = np.random.default_rng((self.seed, from_zero(index, len(self))))
        return draw_heart(rng), rng
