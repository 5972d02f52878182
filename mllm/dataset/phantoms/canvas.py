"""Canvas for phantoms: soft shapes, smooth noise and strokes, drawn with numpy and Pillow."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw


class Canvas:
    """Square image with coordinates from -1 (left, top) to 1 (right, bottom).

    Masks are float32 [H, W] in [0, 1]: 0.5 is the exact edge, and the transition from 0 to 1 is about one pixel wide.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        axis = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
        self.x, self.y = np.broadcast_arrays(axis[None, :], axis[:, None])

    def pixels(self, length: float) -> float:
        """Return a length in canvas units as a number of pixels."""
        return length * self.size / 2

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, angle: float = 0.0, wobble: float = 0.0, soft: float = 1.0
    ) -> np.ndarray:
        """Return the mask of an ellipse with radii `rx` and `ry`, rotated by `angle` radians.

        `wobble` is the amplitude of irregularities of the outline, `soft` the width of the edge in pixels.
        """
        reach = max(rx, ry) / (1 - 1.1 * wobble) + 4 * soft / self.size
        first = np.clip([int(self.pixels(at - reach + 1)) for at in (x, y)], 0, self.size)
        last = np.clip([int(self.pixels(at + reach + 1)) + 1 for at in (x, y)], 0, self.size)
        # Only the window around the shape is computed, because most shapes are small.
        window = slice(first[1], last[1]), slice(first[0], last[0])
        dx, dy = self.x[window] - np.float32(x), self.y[window] - np.float32(y)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = (dx * cos + dy * sin) / np.float32(rx), (dy * cos - dx * sin) / np.float32(ry)
        radius = np.sqrt(u * u + v * v)
        if wobble:
            theta = np.arctan2(v, u)
            for harmonic in (2, 3, 5):
                phase = np.float32(self.rng.uniform(0, 2 * np.pi))
                radius = radius * (1 + np.float32(wobble / harmonic) * np.sin(harmonic * theta + phase))
        mask = np.zeros((self.size, self.size), np.float32)
        mask[window] = edge((1 - radius) * np.float32(self.pixels(min(rx, ry))), soft)
        return mask

    def cloud(self, cells: int, octaves: int = 1) -> np.ndarray:
        """Return smooth noise [H, W] with a standard deviation of about 1 and `cells` periods per image width."""
        total = np.zeros((self.size, self.size), np.float32)
        for octave in range(octaves):
            count = cells * 2**octave
            if count >= self.size:
                break
            knots = Image.fromarray(self.rng.standard_normal((count, count), dtype=np.float32))
            smooth = knots.resize((self.size, self.size), Image.Resampling.BICUBIC)
            total += np.asarray(smooth) * np.float32(0.5**octave)
        return total

    def grain(self) -> np.ndarray:
        """Return white noise [H, W] with a standard deviation of 1."""
        return self.rng.standard_normal((self.size, self.size), dtype=np.float32)

    def strokes(self, paths: Iterable[tuple[np.ndarray, float]]) -> np.ndarray:
        """Return the mask of polylines: pairs of points [N, 2] and a width, both in canvas units."""
        picture = Image.new("L", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(picture)
        for points, width in paths:
            corners = [tuple(point) for point in ((np.asarray(points) + 1) * self.size).tolist()]
            pen.line(corners, fill=255, width=max(1, round(width * self.size)), joint="curve")
        return np.asarray(picture.reduce(2), np.float32) / 255

    def blobs(self, centers: np.ndarray, radius: float, spread: float = 0.25) -> np.ndarray:
        """Return the mask of small irregular spots around `centers` [N, 2], such as the nuclei of cells."""
        picture = Image.new("L", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(picture)
        steps = np.linspace(0, 2 * np.pi, 9)[:-1]
        axes = self.rng.uniform(1 - spread, 1 + spread, (len(centers), 2)) * radius
        turns = self.rng.uniform(0, np.pi, len(centers))
        u, v = axes[:, :1] * np.cos(steps), axes[:, 1:] * np.sin(steps)
        cos, sin = np.cos(turns)[:, None], np.sin(turns)[:, None]
        outlines = np.stack([u * cos - v * sin, u * sin + v * cos], axis=-1) + np.asarray(centers)[:, None, :]
        for outline in ((outlines + 1) * self.size).round().astype(int).tolist():
            pen.polygon([tuple(corner) for corner in outline], fill=255)
        return np.asarray(picture.reduce(2), np.float32) / 255


def edge(distance: np.ndarray, soft: float = 1.0) -> np.ndarray:
    """Return a mask for signed distances in pixels: 1 inside (positive), 0 outside, linear over `soft` pixels."""
    return np.clip(distance / np.float32(soft) + np.float32(0.5), 0, 1)


def over(picture: np.ndarray, mask: np.ndarray, value: float | np.ndarray | tuple[float, ...]) -> np.ndarray:
    """Return the image [H, W] or [H, W, 3] blended with `value`, weighted by `mask` [H, W]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return picture
    # Only the rows and columns of the mask are blended, because most masks are small.
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    paint = np.asarray(value, np.float32)
    if paint.ndim >= 2:
        paint = paint[window]
    cover = mask[window] if picture.ndim == 2 else mask[window][..., None]
    result = picture.astype(np.float32)
    result[window] += (paint - result[window]) * cover
    return result
