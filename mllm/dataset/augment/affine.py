"""Affine maps of images, masks, boxes and points."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from mllm.structures import Mark

Box = tuple[float, float, float, float]


class Affine(NamedTuple):
    """Map (x, y) -> (a x + b y + c, d x + e y + f) of points; pixel (0, 0) extends from 0 to 1 on both axes."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def inverse(self) -> Affine:
        """Return the inverse map."""
        determinant = self.a * self.e - self.b * self.d
        a, b, d, e = (value / determinant for value in (self.e, -self.b, -self.d, self.a))
        return Affine(a, b, -a * self.c - b * self.f, d, e, -d * self.c - e * self.f)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Return the mapped points [..., 2]."""
        return points @ np.array([[self.a, self.d], [self.b, self.e]]) + (self.c, self.f)


def warp_image(image: Image.Image, forward: Affine, size: tuple[int, int], smooth: bool = False) -> Image.Image:
    """Map an image by `forward` onto a black canvas of (width, height); bilinear if `smooth`, else nearest pixel."""
    resample = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return image.transform(size, Image.Transform.AFFINE, forward.inverse(), resample=resample)


def warp_marks(marks: list[Mark], forward: Affine, size: tuple[int, int]) -> list[Mark]:
    """Map marks by `forward` onto a canvas of (width, height).

    Masks are mapped to the nearest pixel. A point outside the canvas is moved to its edge. A box becomes the bounding
    box of its corners, clipped to the canvas. If the map rotates by other than right angles and the mark has a mask,
    the box becomes the bounding box of the mask, which is tighter.
    """
    return [_warp_mark(mark, forward, size) for mark in marks]


def _warp_mark(mark: Mark, forward: Affine, size: tuple[int, int]) -> Mark:
    mask, box, point = mark.mask, mark.box, mark.point
    if mask is not None:
        mask_image = Image.fromarray(mask.astype(bool).astype(np.uint8) * 255)
        mask = np.asarray(warp_image(mask_image, forward, size)) > 127
    if point is not None:
        x, y = np.clip(forward.points(np.array(point, float)), 0, size).tolist()
        point = (x, y)
    if box is not None:
        box = _warp_box(box, mask, forward, size)
    return replace(mark, box=box, mask=mask, point=point)


def _warp_box(box: Box, mask: np.ndarray | None, forward: Affine, size: tuple[int, int]) -> Box:
    """Map a box; `mask` is the mapped mask of the same object."""
    is_rotation = forward.a * forward.b != 0 or forward.d * forward.e != 0
    if is_rotation and mask is not None and mask.any():
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
    x1, y1, x2, y2 = box
    corners = forward.points(np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], float))
    (x1, y1), (x2, y2) = (np.clip(end, 0, size).tolist() for end in (corners.min(axis=0), corners.max(axis=0)))
    return x1, y1, x2, y2
