"""Anatomies of the gray modalities: shapes, region of lesions, appearance of lesions, and noise.

The anatomies model neither physics nor disease. Their images look plausible and differ from each other, and the ground
truth is known exactly.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from typing_extensions import override

from mllm.dataset.phantoms.canvas import Canvas, edge, over


class Anatomy:
    """Base of anatomies; `picture` is float [H, W] or [H, W, 3] in [0, 1], `region` [H, W] the region of lesions."""

    organ: ClassVar[str]
    """Name of the measured organ; `width` is its width in pixels from left to right."""
    lesion: ClassVar[str]
    field: ClassVar[float]
    """Width of the image in mm."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.width = 0.0
        self.region = np.zeros((canvas.size, canvas.size), bool)
        self.picture = self.draw(canvas, canvas.rng)

    def draw(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        """Return the image without lesions and noise; sets `region` and `width`."""
        raise AssertionError("subclasses define `draw`")

    def add_lesion(self, mask: np.ndarray) -> None:
        """Draw a lesion with the mask [H, W]."""
        raise AssertionError("subclasses define `add_lesion`")

    def finish(self) -> np.ndarray:
        """Return the image with noise and frame."""
        return self.picture + 0.015 * self.canvas.grain()


class CT(Anatomy):
    """Axial slice of the chest in a wide window: dark lungs, gray soft tissue, bright bone and aorta."""

    organ, lesion, field = "aorta", "nodule", 380.0

    @override
    def draw(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        wide, tall = rng.uniform(0.84, 0.92), rng.uniform(0.6, 0.68)
        picture = np.zeros((canvas.size, canvas.size), np.float32)
        bed = edge(canvas.pixels(0.012) - np.abs(canvas.y - 0.76 + 0.1 * canvas.x**2) * canvas.size / 2)
        picture = over(picture, bed, 0.35)
        picture = over(picture, canvas.ellipse(0, 0.02, wide, tall, wobble=0.03), 0.36)
        picture = over(picture, canvas.ellipse(0, 0.02, wide - 0.07, tall - 0.06), 0.55 + 0.02 * canvas.cloud(24))
        for turn in np.linspace(0.1, 2 * np.pi + 0.1, 15)[:-1]:
            x, y = (wide - 0.13) * np.cos(turn), 0.02 + (tall - 0.11) * np.sin(turn)
            slope = np.arctan2((tall - 0.1) * np.cos(turn), -(wide - 0.13) * np.sin(turn))
            picture = over(picture, canvas.ellipse(x, y, 0.1, 0.022, slope), 0.92)
        lungs = np.zeros_like(picture)
        for side in (-1, 1):
            x, y = side * rng.uniform(0.4, 0.44), rng.uniform(-0.06, 0.0)
            lung = canvas.ellipse(x, y, 0.28, rng.uniform(0.38, 0.44), side * 0.15, wobble=0.06)
            lungs = np.maximum(lungs, lung)
        picture = over(picture, lungs, 0.09 + 0.015 * canvas.cloud(12))
        self.region = lungs > 0.9
        twigs = canvas.blobs(rng.uniform((-0.7, -0.4), (0.7, 0.35), (45, 2)), 0.008, 0.5)
        picture = over(picture, twigs * lungs, 0.5)
        picture = over(picture, canvas.ellipse(rng.uniform(0.02, 0.1), -0.1, 0.23, 0.27, 0.5, wobble=0.05), 0.62)
        picture = over(picture, canvas.ellipse(-0.03, 0.36, 0.14, 0.105), 0.95 - 0.06 * np.abs(canvas.cloud(48)))
        picture = over(picture, canvas.ellipse(-0.03, 0.47, 0.055, 0.04), 0.55)
        picture = over(picture, canvas.ellipse(-0.03, 0.55, 0.03, 0.08), 0.9)
        radius = rng.uniform(0.055, 0.1)
        self.width = canvas.pixels(2 * radius)
        return over(picture, canvas.ellipse(0.14, 0.25, radius, radius), 0.82)

    @override
    def add_lesion(self, mask: np.ndarray) -> None:
        self.picture = over(self.picture, mask, 0.66)

    @override
    def finish(self) -> np.ndarray:
        return self.picture + 0.022 * self.canvas.cloud(self.canvas.size // 2) + 0.015 * self.canvas.grain()


class MRI(Anatomy):
    """Axial slice of the head, T1-weighted with contrast: bright scalp, dark skull, folded cortex, ventricles."""

    organ, lesion, field = "head", "enhancing lesion", 240.0

    @override
    def draw(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        wide, tall = rng.uniform(0.6, 0.72), rng.uniform(0.8, 0.88)
        self.width = canvas.pixels(2 * wide)
        picture = over(np.full((canvas.size, canvas.size), 0.01, np.float32), canvas.ellipse(0, 0, wide, tall), 0.72)
        picture = over(picture, canvas.ellipse(0, 0, wide - 0.045, tall - 0.045), 0.07)
        picture = over(picture, canvas.ellipse(0, 0, wide - 0.085, tall - 0.085), 0.16)
        brain = canvas.ellipse(0, 0, wide - 0.105, tall - 0.105, wobble=0.015)
        folds = canvas.cloud(13, 2)
        depth = 1 - np.sqrt((canvas.x / (wide - 0.1)) ** 2 + (canvas.y / (tall - 0.1)) ** 2)
        gray = 0.42 + 0.02 * canvas.cloud(30)
        white = edge((depth - 0.16 + 0.09 * folds) * 8, 1.0)
        picture = over(picture, brain, gray)
        picture = over(picture, brain * white, 0.6)
        sulci = np.clip(1 - np.abs(folds) * 7, 0, 1) * np.clip(1 - depth * 2.6, 0, 1)
        picture = over(picture, brain * sulci, 0.15)
        fissure = edge((0.008 - np.abs(canvas.x + 0.006 * np.sin(14 * canvas.y))) * canvas.size / 2)
        picture = over(picture, brain * fissure * np.clip(np.abs(canvas.y) * 4 - 1, 0, 1), 0.12)
        size = rng.uniform(0.8, 1.25)
        horns = np.zeros_like(picture)
        for side in (-1, 1):
            picture = over(picture, canvas.ellipse(side * 0.19, 0.02, 0.08, 0.13, side * -0.2), 0.47)
            horns = np.maximum(horns, canvas.ellipse(side * 0.09, -0.15, 0.05 * size, 0.16 * size, side * 0.3))
            horns = np.maximum(horns, canvas.ellipse(side * 0.12, 0.2, 0.045 * size, 0.15 * size, side * -0.4))
        picture = over(picture, horns, 0.12)
        self.region = (canvas.ellipse(0, 0, wide - 0.17, tall - 0.17) > 0.9) & (horns < 0.01)
        return picture

    @override
    def add_lesion(self, mask: np.ndarray) -> None:
        self.picture = over(self.picture, mask, 0.97)

    @override
    def finish(self) -> np.ndarray:
        canvas, turn = self.canvas, self.canvas.rng.uniform(0, 2 * np.pi)
        bias = 1 + 0.12 * (canvas.x * float(np.cos(turn)) + canvas.y * float(np.sin(turn)))
        # The magnitude of a complex signal with noise in both parts has a Rician distribution: air is not quite black.
        return np.hypot(self.picture * bias + 0.02 * canvas.grain(), 0.02 * canvas.grain())


class XRay(Anatomy):
    """Frontal chest radiograph: dark lung fields under ribs, a white spine and heart, domes of the diaphragm."""

    organ, lesion, field = "heart", "opacity", 400.0

    @override
    def draw(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        x, y = canvas.x, canvas.y
        picture = 0.74 + 0.05 * canvas.cloud(3) - 0.12 * np.abs(x) ** 3
        shoulder = edge((y + 0.98 - 0.55 * np.clip(np.abs(x) - 0.25, 0, 1) ** 1.5) * canvas.size / 2, 6.0)
        picture = picture * (0.12 + 0.88 * shoulder * edge((0.97 - np.abs(x)) * canvas.size / 2, 10.0))
        soft = canvas.size / 30
        lungs = np.zeros_like(picture)
        for side in (-1, 1):
            lobe = canvas.ellipse(side * 0.43, 0.02, 0.33, 0.74, side * 0.1, wobble=0.03, soft=soft)
            dome = edge((0.52 + 0.03 * side - y - 0.5 * (np.abs(x - side * 0.4)) ** 2) * canvas.size / 2, soft / 2)
            lungs = np.maximum(lungs, lobe * dome)
        tone = rng.uniform(0.24, 0.32)
        picture = over(picture, lungs, tone + 0.03 * canvas.cloud(9, 3))
        arms = rng.uniform(-0.05, 0.05)
        ribs = []
        for rib in range(9):
            top = -0.72 + 0.17 * rib + arms
            across = np.linspace(0.1, 0.8, 9)
            for side in (-1, 1):
                fall = top - 0.06 + 0.55 * (across - 0.3) ** 2 + 0.06 * rib * across
                ribs.append((np.stack([side * across, fall], 1), 0.045))
        picture = picture + 0.085 * canvas.strokes(ribs) * np.clip(lungs + 0.15, 0, 1)
        collar = [(np.array([[s * 0.07, -0.62], [s * 0.35, -0.73], [s * 0.8, -0.84]]), 0.055) for s in (-1, 1)]
        picture = picture + 0.12 * canvas.strokes(collar)
        column = np.clip(1 - (np.abs(x) / 0.13) ** 4, 0, 1)
        picture = over(picture, 0.8 * column, 0.8 + 0.035 * np.sin(y * 34))
        picture = over(picture, 0.5 * canvas.ellipse(0.0, -0.75, 0.04, 0.3, soft=soft), 0.5)
        radius = rng.uniform(0.26, 0.38)
        self.width = canvas.pixels(2 * radius)
        picture = over(picture, 0.9 * canvas.ellipse(0.14, 0.3, radius, 0.3, soft=soft), 0.8)
        picture = over(picture, 0.7 * canvas.ellipse(0.1, 0.02, 0.16, 0.3, -0.3, soft=3 * soft), 0.76)
        picture = over(picture, 0.7 * canvas.ellipse(0.12, -0.25, 0.12, 0.11, soft=soft), 0.76)
        for side in (-1, 1):  # the roots of the lungs
            picture = over(
                picture, 0.5 * canvas.ellipse(side * 0.22, -0.05, 0.09, 0.16, side * 0.4, soft=2 * soft), 0.6
            )
        self.region = (lungs > 0.85) & (canvas.ellipse(0.14, 0.3, radius + 0.06, 0.36) < 0.1) & (np.abs(x) > 0.2)
        return picture

    @override
    def add_lesion(self, mask: np.ndarray) -> None:
        self.picture = over(self.picture, 0.75 * mask, 0.78)

    @override
    def finish(self) -> np.ndarray:
        return self.picture + 0.01 * self.canvas.grain()


class Ultrasound(Anatomy):
    """Sector of speckle below a curved probe, with bright layers, a black chamber and the enhancement behind it."""

    organ, lesion, field = "chamber", "bright mass", 160.0

    @override
    def draw(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        x, y = canvas.x, canvas.y + 1.12
        radius, turn = np.hypot(x, y), np.arctan2(x, y)
        opening = rng.uniform(0.6, 0.72)
        self.sector = edge((opening - np.abs(turn)) * radius * canvas.size / 2)
        self.sector = self.sector * edge((radius - 0.22) * canvas.size / 2) * edge((2.02 - radius) * canvas.size / 2)
        tissue = 0.3 + 0.06 * canvas.cloud(5, 2)
        layers = sum(np.exp(-(((radius - at - 0.03 * np.sin(5 * turn)) / 0.014) ** 2)) for at in (0.3, 0.4, 0.47))
        floor = np.exp(-(((radius - rng.uniform(1.72, 1.82) - 0.05 * np.cos(4 * turn + 1)) / 0.03) ** 2))
        tissue = tissue + 0.3 * layers + 0.4 * floor * (0.6 + 0.4 * np.tanh(canvas.cloud(6)))
        stripes = np.clip(0.9 + 0.25 * np.sin(turn * 9 + rng.uniform(0, 6)) * np.clip(radius - 0.6, 0, 1), 0.4, 1.2)
        picture = tissue * stripes * np.clip(1.25 - 0.35 * radius, 0.3, 1.2)
        rx, ry = rng.uniform(0.2, 0.32, 2).tolist()
        at = rng.uniform(-0.2, 0.2), rng.uniform(-0.05, 0.15)
        behind = edge((rx * 0.9 - np.abs(canvas.x - at[0] * (1 + 0.3 * (canvas.y - at[1])))) * canvas.size / 2, 8.0)
        picture = picture * (1 + 0.55 * behind * (canvas.y > at[1]))
        picture = over(picture, canvas.ellipse(*at, rx + 0.03, ry + 0.03, soft=3), 0.62)
        picture = over(picture, canvas.ellipse(*at, rx, ry), 0.03)
        self.width = canvas.pixels(2 * rx)
        inside = (np.abs(turn) < opening - 0.06) & (radius > 0.6) & (radius < 1.65)
        self.region = inside & (canvas.ellipse(*at, rx + 0.07, ry + 0.07) < 0.01)
        return picture

    @override
    def add_lesion(self, mask: np.ndarray) -> None:
        self.picture = over(self.picture, mask, 0.85)

    @override
    def finish(self) -> np.ndarray:
        real, imaginary = self.canvas.cloud(self.canvas.size // 2), self.canvas.cloud(self.canvas.size // 2)
        # Speckle is multiplicative: the magnitude of many random echoes has a Rayleigh distribution.
        return self.picture * (0.25 + 0.75 * np.hypot(real, imaginary)) * self.sector
