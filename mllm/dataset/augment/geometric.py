"""Geometric transforms: flips, rotations, crops, resizing and padding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mllm.dataset.augment.affine import Affine, warp_image, warp_marks
from mllm.dataset.augment.transforms import GeometricTransform, Marks, RigidTransform, Size, require
from mllm.registry import TRANSFORMS
from mllm.structures import Spacing


def _warp(
    image: Image.Image, marks: Marks, forward: Affine, size: tuple[int, int], smooth: bool = False
) -> tuple[Image.Image, Marks]:
    return warp_image(image, forward, size, smooth), warp_marks(marks, forward, size)


def _is_range(pair: Any, low: float, high: float) -> bool:
    return isinstance(pair, (list, tuple)) and len(pair) == 2 and low < pair[0] <= pair[1] <= high


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class RandomFlip(RigidTransform):
    """Flip of an image. Words of the text, such as left and right, are not changed."""

    direction: str = "horizontal"
    """'horizontal' or 'vertical'."""
    probability: float = 0.5

    def __post_init__(self) -> None:
        is_known = self.direction in ("horizontal", "vertical")
        require("direction", self.direction, is_known, "horizontal or vertical")
        require("probability", self.probability, 0 <= self.probability <= 1, "from 0 to 1")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Return image and marks, flipped with `probability`."""
        if rng.random() >= self.probability:
            return image, marks
        flip = (
            Affine(-1, 0, image.width, 0, 1, 0)
            if self.direction == "horizontal"
            else Affine(1, 0, 0, 0, -1, image.height)
        )
        return _warp(image, marks, flip, image.size)


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class RandomRotate90(RigidTransform):
    """Rotation by 0, 90, 180 or 270 degrees, for pathology and other images without an orientation."""

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Return image and marks, rotated counterclockwise."""
        width, height = image.size
        quarter = int(rng.integers(4))
        forward = (
            Affine(1, 0, 0, 0, 1, 0),
            Affine(0, 1, 0, -1, 0, width),
            Affine(-1, 0, width, 0, -1, height),
            Affine(0, -1, height, 1, 0, 0),
        )[quarter]
        return _warp(image, marks, forward, (height, width) if quarter % 2 else (width, height))


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class RandomRotation(RigidTransform):
    """Rotation by an angle drawn from [-degrees, degrees]; the image is enlarged, so that nothing is cut off."""

    degrees: float

    def __post_init__(self) -> None:
        require("degrees", self.degrees, 0 <= self.degrees <= 180, "from 0 to 180")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Return image and marks, rotated counterclockwise about the center on black."""
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        cosine, sine = math.cos(angle), math.sin(angle)
        # Slightly less than the exact size, so that rounding errors do not add a row.
        width = math.ceil(abs(cosine) * image.width + abs(sine) * image.height - 1e-6)
        height = math.ceil(abs(sine) * image.width + abs(cosine) * image.height - 1e-6)
        x, y = image.width / 2, image.height / 2
        forward = Affine(
            *(cosine, sine, width / 2 - cosine * x - sine * y),
            *(-sine, cosine, height / 2 + sine * x - cosine * y),
        )
        return _warp(image, marks, forward, (width, height), smooth=True)


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class RandomResizedCrop(GeometricTransform):
    """Crop and resize. The crop contains all marks, so that no answer is cut off."""

    size: int | tuple[int, int] | None = None
    """Size in pixels: one number for a square, or (width, height); None: the size of the image."""
    scale: tuple[float, float] = (0.8, 1.0)
    """Range of the area of the crop, relative to the area of the image."""
    ratio: tuple[float, float] = (0.9, 1.1)
    """Range of the aspect ratio of the crop, relative to the aspect ratio of the image."""

    def __post_init__(self) -> None:
        require("scale", self.scale, _is_range(self.scale, 0, 1), "two ascending numbers in (0, 1]")
        is_valid = _is_range(self.ratio, 0, math.inf)
        require("ratio", self.ratio, is_valid, "two ascending numbers above 0")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Return image and marks, cropped at whole pixels and resized."""
        area, ratio = rng.uniform(*self.scale), math.exp(rng.uniform(*np.log(self.ratio)))
        offsets = rng.random(2)
        starts, ends = [], []
        fractions = (math.sqrt(area * ratio), math.sqrt(area / ratio))
        for axis, (length, fraction) in enumerate(zip(image.size, fractions, strict=True)):
            low, high = _extent(marks, axis, length)
            side = min(max(round(length * fraction), high - low, 1), length)
            first, last = max(0, high - side), min(low, length - side)
            starts.append(min(first + int(offsets[axis] * (last - first + 1)), last))
            ends.append(starts[-1] + side)
        size = (ends[0] - starts[0], ends[1] - starts[1])
        crop, cropped_marks = _warp(image, marks, Affine(1, 0, -starts[0], 0, 1, -starts[1]), size)
        return Resize(image.size if self.size is None else self.size)(crop, cropped_marks, rng)


def _extent(marks: Marks, axis: int, length: int) -> tuple[int, int]:
    """Return the first and last whole pixel of the marks along x (axis 0) or y (axis 1); without marks (length, 0)."""
    lows, highs = [length], [0]
    for mark in marks:
        if mark.box is not None:
            lows.append(math.floor(mark.box[axis]))
            highs.append(math.ceil(mark.box[axis + 2]))
        if mark.point is not None:
            pixel = min(math.floor(mark.point[axis]), length - 1)
            lows.append(pixel)
            highs.append(pixel + 1)
        if mark.mask is not None and mark.mask.any():
            filled = np.flatnonzero(mark.mask.any(axis=axis))
            lows.append(int(filled[0]))
            highs.append(int(filled[-1]) + 1)
    return max(min(lows), 0), min(max(highs), length)


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class Resize(GeometricTransform):
    """Resizing of an image (bilinear with antialiasing) and its masks (nearest pixel)."""

    size: int | tuple[int, int]
    """Size in pixels: one number for a square, or (width, height)."""

    def __post_init__(self) -> None:
        pair = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        require("size", self.size, len(pair) == 2 and min(pair) >= 1, "a number of pixels or (width, height)")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Return image and marks at the new size."""
        width, height = (self.size, self.size) if isinstance(self.size, int) else self.size
        forward = Affine(width / image.width, 0, 0, 0, height / image.height, 0)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized, warp_marks(marks, forward, resized.size)

    def spacing_after(self, spacing: Spacing, before: Size, after: Size) -> Spacing | None:
        """Return the pixel spacing scaled by the ratio of the sizes."""
        return spacing[0] * before[0] / after[0], spacing[1] * before[1] / after[1]


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class PadToSquare(RigidTransform):
    """Padding of an image to a centered square on black, so that a later resize keeps its aspect ratio."""

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Return image and marks, moved by half the difference of the sides, rounded down."""
        side = max(image.size)
        left, top = (side - image.width) // 2, (side - image.height) // 2
        return _warp(image, marks, Affine(1, 0, left, 0, 1, top), (side, side))
