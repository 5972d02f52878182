"""Transforms of pixel values: brightness, contrast and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from mllm.dataset.augment.transforms import Marks, PixelTransform, require
from mllm.registry import TRANSFORMS


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class ColorJitter(PixelTransform):
    """Random brightness and contrast, with factors drawn from [1 - x, 1 + x]."""

    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        for key, value in (("brightness", self.brightness), ("contrast", self.contrast)):
            require(key, value, 0 <= value <= 1, "from 0 to 1")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Return the image with changed brightness, then changed contrast, and the unchanged marks."""
        brightness, contrast = 1 + rng.uniform(-1, 1, 2) * (self.brightness, self.contrast)
        return ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(brightness)).enhance(contrast), marks


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class GaussianNoise(PixelTransform):
    """Gaussian noise with a standard deviation in gray levels (0 to 255), equal for all channels of a pixel."""

    std: float

    def __post_init__(self) -> None:
        require("std", self.std, self.std >= 0, "0 or more")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Return the image with noise, clipped to [0, 255], and the unchanged marks."""
        values = np.asarray(image, np.float32)
        noise = rng.normal(0, self.std, (*values.shape[:2], 1)[: values.ndim]).astype(np.float32)
        return Image.fromarray(np.clip(np.rint(values + noise), 0, 255).astype(np.uint8)), marks
