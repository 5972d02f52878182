"""Application of transforms to the images of a sample and their marks.

Transforms have no state: all random draws come from the generator that they receive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from mllm.errors import ConfigError
from mllm.registry import TRANSFORMS, build
from mllm.structures import Mark, Sample, Spacing

Marks = list[Mark]
Transform = Callable[[Image.Image, Marks, np.random.Generator], tuple[Image.Image, Marks]]


Size = tuple[int, int]
"""Width and height in pixels."""


class PixelTransform:
    """Base class of transforms that only change pixel values; each image of a sample has its own random draw."""


class GeometricTransform:
    """Base class of transforms of positions. The pixel spacing is unknown after a transform of no base class."""

    def spacing_after(self, spacing: Spacing, before: Size, after: Size) -> Spacing | None:
        """Return the pixel spacing of a transformed image in mm; None: it cannot be determined.

        Args:
            spacing: Pixel spacing of the image.
            before: Size of the image.
            after: Size of the transformed image.
        """
        return None


class RigidTransform(GeometricTransform):
    """Base class of transforms that keep distances, and rotate at most images with square pixels."""

    def spacing_after(self, spacing: Spacing, before: Size, after: Size) -> Spacing | None:
        """Return the pixel spacing unchanged; None for pixels that are not square, because the image may be rotated."""
        return spacing if spacing[0] == spacing[1] else None


def build_transforms(transforms: Sequence[Mapping[str, Any] | Transform]) -> list[Transform]:
    """Build the transforms of a config, `dict(type=..., **options)`, in order; transforms are returned as they are."""
    return [build(TRANSFORMS, item, "transforms") if isinstance(item, Mapping) else item for item in transforms]


def apply_transforms(sample: Sample, transforms: Sequence[Transform], rng: np.random.Generator) -> Sample:
    """Return the sample with its images transformed in order; marks are transformed with the image that they lie in.

    Geometric transforms use the same draw for all images of the sample, so that frames of a video or slices of the
    same size stay aligned. Transforms of pixel values (`PixelTransform`) use a new draw for each image.
    """
    if not sample.images or not transforms:
        return sample
    images, marks, spacings = list(sample.images), list(sample.marks), sample.spacings
    for transform in transforms:
        sizes = [image.size for image in images]
        images, marks = _transform_all(images, marks, transform, int(rng.integers(2**62)))
        spacings = tuple(
            None if spacing is None else _spacing_after(transform, spacing, before, image.size)
            for spacing, before, image in zip(spacings, sizes, images, strict=False)
        )
    return replace(sample, images=images, marks=marks, spacings=spacings)


def _spacing_after(transform: Transform, spacing: Spacing, before: Size, after: Size) -> Spacing | None:
    if isinstance(transform, PixelTransform):
        return spacing
    return transform.spacing_after(spacing, before, after) if isinstance(transform, GeometricTransform) else None


def _transform_all(
    images: list[Image.Image], marks: Marks, transform: Transform, seed: int
) -> tuple[list[Image.Image], Marks]:
    """Apply one transform to all images of a sample and to their marks."""
    sizes = dict(enumerate(image.size for image in images))
    images, transformed_marks = list(images), list(marks)
    for number, size in sizes.items():
        # Crops contain all marks: aligned images need the same crop and are transformed with the marks of all of them.
        aligned = [i for i, mark in enumerate(marks) if sizes.get(mark.image) == size]
        rng = np.random.default_rng([seed, number] if isinstance(transform, PixelTransform) else seed)
        images[number], results = transform(images[number], [marks[i] for i in aligned], rng)
        if len(results) != len(aligned):
            raise ConfigError(f"transform {type(transform).__name__} must return all {len(aligned)} marks, in order")
        for i, mark in zip(aligned, results, strict=True):
            if marks[i].image == number:
                transformed_marks[i] = mark
    return images, transformed_marks


def require(option: str, value: Any, is_valid: bool, condition: str) -> None:
    """Raise `ConfigError` with the value of an option and the condition that it must satisfy, if it is invalid."""
    if not is_valid:
        raise ConfigError(f"{option}={value!r} must be {condition}")
