"""Augmentation of images together with their marks; stateless: every draw comes from the generator that is given."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from mllm.dataset.augment.affine import Affine, warp_image, warp_marks
from mllm.errors import ConfigError, hint
from mllm.registry import TRANSFORMS
from mllm.structures import Mark, Sample

Marks = list[Mark]
Transform = Callable[[Image.Image, Marks, np.random.Generator], tuple[Image.Image, Marks]]


class PixelTransform:
    """A transform that changes values and moves nothing, so that every image of a sample has a draw of its own."""


def build_transforms(options: Sequence[dict[str, Any]]) -> list[Transform]:
    """The transforms that a config lists as `dict(type=..., **arguments)`, in its order."""
    transforms = []
    for option in options:
        arguments = dict(option)
        kind = arguments.pop("type", None)
        if kind is None:
            raise ConfigError(f"the transform {option} has no 'type'{hint('type', arguments)}")
        cls = TRANSFORMS.find(kind)
        known = list(inspect.signature(cls).parameters)
        for key in arguments:
            if key not in known:
                raise ConfigError(f"transform {kind} has no argument '{key}'{hint(key, known)}")
        try:
            transforms.append(cls(**arguments))
        except TypeError as error:
            raise ConfigError(f"transform {kind}: {error}") from error
    return transforms


def apply_transforms(sample: Sample, transforms: Sequence[Transform], rng: np.random.Generator) -> Sample:
    """The sample with its images transformed one after another, and every mark with the image that it lies in.

    What moves pixels draws the same for all images of the sample, so that two frames of a video or two slices still
    lie over each other (where their sizes are equal); what changes values draws anew.
    """
    if not sample.images or not transforms:
        return sample
    images, marks = list(sample.images), list(sample.marks)
    for transform in transforms:
        images, marks = _transformed(images, marks, transform, int(rng.integers(2**62)))
    return replace(sample, images=images, marks=marks)


def _transformed(
    images: list[Image.Image], marks: Marks, transform: Transform, seed: int
) -> tuple[list[Image.Image], Marks]:
    """All images of a sample after one transform, each with its own marks."""
    sizes = dict(enumerate(image.size for image in images))
    images, moved = list(images), list(marks)
    for number, size in sizes.items():
        # Crops make room for the marks: images that lie over each other must be cut with the marks of all of them.
        alike = [i for i, mark in enumerate(marks) if sizes.get(mark.image) == size]
        draws = np.random.default_rng([seed, number] if isinstance(transform, PixelTransform) else seed)
        images[number], followed = transform(images[number], [marks[i] for i in alike], draws)
        if len(followed) != len(alike):
            raise ConfigError(f"transform {type(transform).__name__} must give back all {len(alike)} marks, in order")
        for i, mark in zip(alike, followed, strict=True):
            if marks[i].image == number:
                moved[i] = mark
    return images, moved


def _check(kind: str, key: str, value: Any, sensible: bool, wanted: str) -> None:
    if not sensible:
        raise ConfigError(f"transform {kind}: {key}={value!r} must be {wanted}")


def _moved(
    image: Image.Image, marks: Marks, forward: Affine, size: tuple[int, int], smooth: bool = False
) -> tuple[Image.Image, Marks]:
    return warp_image(image, forward, size, smooth), warp_marks(marks, forward, size)


def _is_range(pair: Any, low: float, high: float) -> bool:
    return len(pair) == 2 and low < pair[0] <= pair[1] <= high


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class RandomFlip:
    """Mirrors an image, horizontally unless told otherwise; mind that left and right in the text do not follow."""

    direction: str = "horizontal"
    probability: float = 0.5

    def __post_init__(self) -> None:
        is_known = self.direction in ("horizontal", "vertical")
        _check("RandomFlip", "direction", self.direction, is_known, "horizontal or vertical")
        _check("RandomFlip", "probability", self.probability, 0 <= self.probability <= 1, "from 0 to 1")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Image and marks, mirrored with `probability`."""
        if rng.random() >= self.probability:
            return image, marks
        mirror = (
            Affine(-1, 0, image.width, 0, 1, 0)
            if self.direction == "horizontal"
            else Affine(1, 0, 0, 0, -1, image.height)
        )
        return _moved(image, marks, mirror, image.size)


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class RandomRotate90:
    """Turns an image by 0, 90, 180 or 270 degrees, for pathology and other images that have no up."""

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Image and marks, turned counterclockwise."""
        width, height = image.size
        turn = int(rng.integers(4))
        forward = (
            Affine(1, 0, 0, 0, 1, 0),
            Affine(0, 1, 0, -1, 0, width),
            Affine(-1, 0, width, 0, -1, height),
            Affine(0, -1, height, 1, 0, 0),
        )[turn]
        return _moved(image, marks, forward, (height, width) if turn % 2 else (width, height))


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class RandomRotation:
    """Turns an image by an angle drawn from -degrees to degrees; the picture grows, so that nothing is cut off."""

    degrees: float

    def __post_init__(self) -> None:
        _check("RandomRotation", "degrees", self.degrees, 0 <= self.degrees <= 180, "from 0 to 180")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Image and marks, turned counterclockwise about the center on black; a box becomes the box around itself."""
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        cosine, sine = math.cos(angle), math.sin(angle)
        # A hair less than the exact size: rounding errors must not add a row.
        width = math.ceil(abs(cosine) * image.width + abs(sine) * image.height - 1e-6)
        height = math.ceil(abs(sine) * image.width + abs(cosine) * image.height - 1e-6)
        x, y = image.width / 2, image.height / 2
        forward = Affine(
            *(cosine, sine, width / 2 - cosine * x - sine * y),
            *(-sine, cosine, height / 2 + sine * x - cosine * y),
        )
        return _moved(image, marks, forward, (width, height), smooth=True)


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts out a part and resizes it; the part always holds every mark, so that no answer is cut off."""

    size: int | tuple[int, int] | None = None
    """Pixels: one number for a square, or (width, height); None: the size of the image."""
    scale: tuple[float, float] = (0.8, 1.0)
    """Which share of the area is kept."""
    ratio: tuple[float, float] = (0.9, 1.1)
    """Width to height of the part, relative to the image's."""

    def __post_init__(self) -> None:
        _check("RandomResizedCrop", "scale", self.scale, _is_range(self.scale, 0, 1), "two rising numbers in (0, 1]")
        rises = _is_range(self.ratio, 0, math.inf)
        _check("RandomResizedCrop", "ratio", self.ratio, rises, "two rising numbers above 0")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Image and marks, cut at whole pixels and resized."""
        area, ratio = rng.uniform(*self.scale), math.exp(rng.uniform(*np.log(self.ratio)))
        where = rng.random(2)
        starts, ends = [], []
        shares = (math.sqrt(area * ratio), math.sqrt(area / ratio))
        for axis, (length, share) in enumerate(zip(image.size, shares, strict=True)):
            low, high = _extent(marks, axis, length)
            kept = min(max(round(length * share), high - low, 1), length)
            first, last = max(0, high - kept), min(low, length - kept)
            starts.append(min(first + int(where[axis] * (last - first + 1)), last))
            ends.append(starts[-1] + kept)
        size = (ends[0] - starts[0], ends[1] - starts[1])
        part, moved = _moved(image, marks, Affine(1, 0, -starts[0], 0, 1, -starts[1]), size)
        return Resize(image.size if self.size is None else self.size)(part, moved, rng)


def _extent(marks: Marks, axis: int, length: int) -> tuple[int, int]:
    """The whole pixels from which to which the marks reach along x (0) or y (1); nothing: (length, 0) turned round."""
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
class Resize:
    """Resizes an image, bilinear with antialiasing; a mask takes the nearest pixel."""

    size: int | tuple[int, int]
    """Pixels: one number for a square, or (width, height)."""

    def __post_init__(self) -> None:
        pair = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        _check("Resize", "size", self.size, len(pair) == 2 and min(pair) >= 1, "a number of pixels or (width, height)")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Image and marks at the new size."""
        width, height = (self.size, self.size) if isinstance(self.size, int) else self.size
        forward = Affine(width / image.width, 0, 0, 0, height / image.height, 0)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized, warp_marks(marks, forward, resized.size)


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class PadToSquare:
    """Puts an image in the middle of a black square, so that a later resize keeps its proportions."""

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Image and marks, moved by half the difference of the sides, rounded down."""
        side = max(image.size)
        left, top = (side - image.width) // 2, (side - image.height) // 2
        return _moved(image, marks, Affine(1, 0, left, 0, 1, top), (side, side))


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class ColorJitter(PixelTransform):
    """Multiplies brightness and contrast by factors drawn from 1 - x to 1 + x."""

    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        for key, value in (("brightness", self.brightness), ("contrast", self.contrast)):
            _check("ColorJitter", key, value, 0 <= value <= 1, "from 0 to 1")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Image with the new brightness and then the new contrast, and the marks as they are."""
        brightness, contrast = 1 + rng.uniform(-1, 1, 2) * (self.brightness, self.contrast)
        return ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(brightness)).enhance(contrast), marks


@TRANSFORMS.register_module()
@dataclass(frozen=True)
class GaussianNoise(PixelTransform):
    """Adds noise of a standard deviation in gray levels of 255, the same to all channels of a pixel."""

    std: float

    def __post_init__(self) -> None:
        _check("GaussianNoise", "std", self.std, self.std >= 0, "0 or more")

    def __call__(self, image: Image.Image, marks: Marks, rng: np.random.Generator) -> tuple[Image.Image, Marks]:
        """Image with noise, clipped to 0 and 255, and the marks as they are."""
        values = np.asarray(image, np.float32)
        noise = rng.normal(0, self.std, (*values.shape[:2], 1)[: values.ndim]).astype(np.float32)
        return Image.fromarray(np.clip(np.rint(values + noise), 0, 255).astype(np.uint8)), marks
