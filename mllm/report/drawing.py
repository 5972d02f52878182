"""Drawing of numbered boxes, masks and points on images, visible on dark and on bright backgrounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mllm.errors import ConfigError
from mllm.metrics.areas import box_of
from mllm.report.legend import Color, add_legend
from mllm.structures import Mark

COLORS = (
    *((0, 229, 255), (255, 145, 0), (118, 255, 3), (255, 64, 220), (255, 234, 0), (255, 72, 72)),
    *((148, 138, 255), (0, 230, 150), (255, 190, 160), (60, 140, 255)),
)
"""RGB colors that differ clearly from each other and from gray; they repeat after the last one."""
FILL = 0.28
"""Opacity of the inside of a mask; the image must stay visible below it."""
HALO = 0.6
"""Opacity of the black edge of a line, for bright backgrounds."""
SMALLEST = 512
"""Pixels of the longer side below which a picture is enlarged by an integer factor, so that labels are readable."""
OVERSAMPLING = 4
PREDICTED = (255, 145, 0)
"""Color of all predictions where true marks are drawn beside them: orange, which differs from cyan for all eyes."""
TRUE = (0, 229, 255)
"""Color of all true marks."""
Box = tuple[float, float, float, float]
"""x1 y1 x2 y2 in pixels."""


class Drawn(NamedTuple):
    """Mark of a picture with the text and the color of its label."""

    mark: Mark
    label: str
    color: Color


def draw_marks(image: Image.Image, marks: Sequence[Drawn], smallest: int = SMALLEST) -> Image.Image:
    """Return a picture of `image` with its marks: filled masks with outlines, boxes and points, each with a label.

    No box is drawn for a mask without one. The picture has the size of the image, or a multiple of it if the image is
    smaller than `smallest`.
    """
    scale = max(1, -(-smallest // max(image.size)))
    size = (image.width * scale, image.height * scale)
    picture = _Picture(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), scale)
    for mark, _, color in marks:
        if mark.mask is not None:
            picture.draw_mask(mark.mask, color)
    for mark, _, color in marks:
        if mark.box is not None:
            picture.draw_box(mark.box, color)
        if mark.point is not None:
            picture.draw_point(mark.point, color)
    for mark, label, color in marks:
        picture.draw_label(mark, label, color)
    return picture.finished()


def numbered(marks: Sequence[Mark]) -> list[Drawn]:
    """Return marks with the labels 1, 2, ..., each in its own color."""
    return [Drawn(mark, str(number + 1), COLORS[number % len(COLORS)]) for number, mark in enumerate(marks)]


def beside_truth(marks: Sequence[Mark], true: Sequence[Mark]) -> list[Drawn]:
    """Return the true marks with the labels T1, T2, ... in one color, and the predictions 1, 2, ... in another one."""
    truth = [Drawn(mark, f"T{number}", TRUE) for number, mark in enumerate(true, start=1)]
    return truth + [Drawn(mark, str(number), PREDICTED) for number, mark in enumerate(marks, start=1)]


def draw_answer(
    images: Sequence[Image.Image], marks: Sequence[Mark], path: Path, true: Sequence[Mark] = ()
) -> list[Path]:
    """Write a picture of each image with marks and return the files.

    For one image the file is `path`, else `NAME-1.png`, `NAME-2.png` with the number of the image. The label of a mark
    is its position in `marks`, counted over all images.

    Args:
        images: The images of a sample.
        marks: The predicted marks.
        path: The file.
        true: The true marks. With them, predictions and truth have one color each and a legend.
    """
    files, drawn = [], beside_truth(marks, true) if true else numbered(marks)
    for index, image in enumerate(images):
        inside = [entry for entry in drawn if entry.mark.image == index]
        if not inside:
            continue
        file = path if len(images) == 1 else path.with_name(f"{path.stem}-{index + 1}{path.suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = draw_marks(image, inside)
        if true:
            picture = add_legend(picture, {"true (T1, T2, ...)": TRUE, "predicted (1, 2, ...)": PREDICTED})
        picture.save(file)
        files.append(file)
    return files


def refuse_drawing(path: Path, many: bool) -> None:
    """Raise `ConfigError` if `--draw` would overwrite files, or is not the name of a .png file for a single answer."""
    if many and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--draw {path} exists and is not an empty folder; remove it or choose another name")
    if not many and path.suffix.lower() != ".png":
        raise ConfigError(f"--draw {path} must be the name of a .png file")
    if not many and path.exists():
        raise ConfigError(f"--draw {path} exists; remove it or choose another name")


class _Picture:
    """Canvas [H, W, 3] of an enlarged image; coordinates are in pixels of the image."""

    def __init__(self, image: Image.Image, scale: int) -> None:
        self.pixels = np.asarray(image, dtype=np.float32)
        self.scale = scale
        self.width, self.height = image.size
        self.line = max(2.0, max(image.size) / 300)
        """Pixels of the picture."""
        self.labels: list[Box] = []

    def finished(self) -> Image.Image:
        return Image.fromarray(np.clip(self.pixels + 0.5, 0, 255).astype(np.uint8))

    def paint(self, color: tuple[int, int, int], alpha: np.ndarray, left: int = 0, top: int = 0) -> None:
        """Blend `color` with opacity `alpha` [h, w] at (left, top), which must be inside the picture."""
        part = self.pixels[top : top + alpha.shape[0], left : left + alpha.shape[1]]
        part += alpha[..., None] * (np.array(color, dtype=np.float32) - part)

    def draw_mask(self, mask: np.ndarray, color: tuple[int, int, int]) -> None:
        small = Image.fromarray(mask.astype(np.uint8) * 255)
        inside = small.resize((self.width, self.height), Image.Resampling.BILINEAR)
        self.paint(color, FILL * np.asarray(inside, dtype=np.float32) / 255)
        # At the distance d from an edge, an image blurred by s has the value of the normal distribution function at
        # d / s. So the distance follows from the difference to one half.
        blur = self.line * 0.9
        soft = np.asarray(inside.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32) / 255
        distance = np.abs(soft - 0.5) * np.sqrt(2 * np.pi) * blur
        # Far from the edge `soft` is 0 or 1 and the formula does not hold; the ramps below end before that.
        self.paint((0, 0, 0), HALO * np.clip(0.5 + self.line * 0.8 - distance, 0, 1))
        self.paint(color, np.clip(0.5 + self.line / 2 - distance, 0, 1))

    def draw_box(self, box: Box, color: tuple[int, int, int]) -> None:
        half = self.line / 2
        # A line at the border of the picture is moved inside, so that it is visible.
        ends = (self.width - half, self.height - half)
        clamped = [min(max(value * self.scale, half), ends[i % 2]) for i, value in enumerate(box)]
        for paint, reach, opacity in (((0, 0, 0), half + 1.2, HALO), (color, half, 1.0)):
            alpha = self._covered(clamped, reach) - self._covered(clamped, -reach)
            self.paint(paint, opacity * alpha)

    def _covered(self, box: Sequence[float], margin: float) -> np.ndarray:
        """Return the fraction of each pixel [H, W] that a box covers, extended by `margin` pixels on each side."""
        x1, y1, x2, y2 = box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin
        return _overlap(self.height, y1, y2)[:, None] * _overlap(self.width, x1, x2)[None, :]

    def draw_point(self, point: tuple[float, float], color: tuple[int, int, int]) -> None:
        x, y = (value * self.scale for value in point)
        columns, rows = np.arange(self.width) + 0.5 - x, np.arange(self.height) + 0.5 - y
        distance = np.hypot(columns[None, :], rows[:, None])
        radius = 2 * self.line
        self.paint((0, 0, 0), HALO * np.clip(radius + 2 - distance, 0, 1))
        self.paint(color, np.clip(radius + 0.5 - distance, 0, 1))

    def draw_label(self, mark: Mark, text: str, color: tuple[int, int, int]) -> None:
        """Draw the number of a mark on a plate of its color, at a free position near the mark."""
        plate, ink = _label(text, max(13, round(max(self.width, self.height) / 42)))
        height, width = plate.shape
        left, top = self._free_corner(mark, width, height)
        self.labels.append((left, top, left + width, top + height))
        plate, ink = (alpha[: self.height - top, : self.width - left] for alpha in (plate, ink))
        self.paint(color, plate, left, top)
        self.paint((0, 0, 0), ink, left, top)

    def _free_corner(self, mark: Mark, width: int, height: int) -> tuple[int, int]:
        """Return left and top of a label: above or below the mark, or in its corners, if possible without overlap."""
        x1, y1, x2, y2 = self._extent(mark)
        gap = self.line
        candidates = [
            *((x1 - gap, y1 - height - gap), (x1 - gap, y2 + gap), (x2 - width + gap, y1 - height - gap)),
            *((x2 - width + gap, y2 + gap), (x1 + gap, y1 + gap), (x2 - width - gap, y2 - height - gap)),
        ]
        inside = [
            (left, top)
            for left, top in candidates
            if 0 <= top <= self.height - height and -gap - 1 <= left <= self.width - width + gap + 1
        ]
        for left, top in [*inside, *candidates]:
            corner = self._clamped(left, top, width, height)
            if not any(_intersect((*corner, corner[0] + width, corner[1] + height), label) for label in self.labels):
                return corner
        return self._clamped(*candidates[0], width, height)

    def _clamped(self, left: float, top: float, width: int, height: int) -> tuple[int, int]:
        return (
            round(min(max(left, 0), max(0, self.width - width))),
            round(min(max(top, 0), max(0, self.height - height))),
        )

    def _extent(self, mark: Mark) -> Box:
        """Return x1 y1 x2 y2 of a mark in pixels of the picture."""
        box = box_of(mark)
        reach = 2 * self.line / self.scale
        if box is not None:
            corners = box.corners
        elif mark.point is not None:
            x, y = mark.point
            corners = (x - reach, y - reach, x + reach, y + reach)
        else:  # a mask without a pixel
            corners = (0.0, 0.0, 0.0, 0.0)
        x1, y1, x2, y2 = (value * self.scale for value in corners)
        return x1, y1, x2, y2


def _overlap(length: int, start: float, end: float) -> np.ndarray:
    """Return the fraction of each of `length` pixels between `start` and `end`, in [0, 1]."""
    pixels = np.arange(length, dtype=np.float32)
    return np.clip(np.minimum(pixels + 1, end) - np.maximum(pixels, start), 0, 1)


def _label(text: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the opacities [h, w] of a plate with round corners and of the text on it, `size` pixels high."""
    large = size * OVERSAMPLING
    font = ImageFont.load_default(large)
    left, top, right, bottom = font.getbbox(text)
    width = max(round(right - left), large // 2) + large // 2
    canvas = (-(-width // OVERSAMPLING) * OVERSAMPLING, round(size * 1.3) * OVERSAMPLING)
    alphas = []
    for layer in ("plate", "ink"):
        picture = Image.new("L", canvas)
        draw = ImageDraw.Draw(picture)
        if layer == "plate":
            draw.rounded_rectangle((0, 0, canvas[0] - 1, canvas[1] - 1), radius=large // 5, fill=255)
        else:
            middle = ((canvas[0] - left - right) / 2, (canvas[1] - top - bottom) / 2)
            draw.text(middle, text, font=font, fill=255, stroke_width=max(1, large // 40), stroke_fill=255)
        shrunk = picture.resize((canvas[0] // OVERSAMPLING, canvas[1] // OVERSAMPLING), Image.Resampling.BOX)
        alphas.append(np.asarray(shrunk, dtype=np.float32) / 255)
    return alphas[0], alphas[1]


def _intersect(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
