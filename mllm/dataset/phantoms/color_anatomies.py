"""Anatomies of the color modalities: fundus, pathology and endoscopy."""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from mllm.dataset.phantoms.anatomies import Anatomy
from mllm.dataset.phantoms.canvas import Canvas, edge, over


class Fundus(Anatomy):
    """Fundus of an eye: an orange disk on black, a yellow optic disc with branching vessels, and a dark fovea."""

    organ, lesion, field = "optic disc", "hemorrhage", 12.0

    @override
    def draw(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        side = float(rng.choice([-1.0, 1.0]))
        x, y = side * rng.uniform(0.4, 0.5), rng.uniform(-0.08, 0.08)
        self.eye = canvas.ellipse(0, 0, 0.95, 0.95, soft=3)
        light = 1 - 0.28 * (canvas.x**2 + canvas.y**2) + 0.04 * canvas.cloud(4, 3)
        picture = light[..., None] * np.array([0.86, 0.42, 0.16], np.float32)
        fovea = np.exp(-(((canvas.x + side * 0.12) ** 2 + canvas.y**2) / 0.03))
        picture = over(picture, 0.55 * fovea, (0.5, 0.17, 0.06))
        radius = rng.uniform(0.11, 0.17)
        self.width = canvas.pixels(2 * radius)
        picture = over(picture, canvas.ellipse(x, y, radius, radius * 1.05), (1.0, 0.83, 0.45))
        picture = over(picture, canvas.ellipse(x, y, radius * 0.45, radius * 0.5, soft=4), (1.0, 0.95, 0.75))
        vessels: list[tuple[np.ndarray, float]] = []
        for up in (-1, 1):
            self._grow(vessels, rng, (x, y), side * -1, up, 1.25, 0.034)
            self._grow(vessels, rng, (x, y), side * -1, up * 0.8, 1.05, 0.024)
            self._grow(vessels, rng, (x, y), side, up, 0.5, 0.024)
        trees = canvas.strokes(vessels)
        picture = over(picture, 0.8 * trees, (0.48, 0.1, 0.05))
        near_disc = canvas.ellipse(x, y, radius + 0.05, radius + 0.05)
        self.region = (canvas.ellipse(0, 0, 0.85, 0.85) > 0.9) & (near_disc < 0.01)
        return picture

    def _grow(
        self,
        vessels: list[tuple[np.ndarray, float]],
        rng: np.random.Generator,
        start: tuple[float, float],
        ahead: float,
        up: float,
        length: float,
        width: float,
    ) -> None:
        """Add a vessel with its branches that runs from the optic disc around the fovea."""
        t = np.linspace(0, 1, 14)
        x = start[0] + ahead * length * (0.9 * t + 0.15 * t**2) + 0.015 * np.cumsum(rng.standard_normal(14)) * t
        y = start[1] + up * length * (0.62 * np.sin(2.1 * t) - 0.1 * t) + 0.015 * np.cumsum(rng.standard_normal(14)) * t
        points = np.stack([x, y], 1)
        for part in range(0, 13, 3):  # vessels taper
            vessels.append((points[part : part + 4], width * (1 - 0.055 * part)))
        for begin in rng.choice(np.arange(2, 12), 4, replace=False):
            turn = np.arctan2(*(points[begin + 1] - points[begin])[::-1]) + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
            reach = np.linspace(0, rng.uniform(0.2, 0.5), 7)
            bend = turn + np.cumsum(rng.normal(0, 0.12, 7))
            branch = points[begin] + np.stack([reach * np.cos(bend), reach * np.sin(bend)], 1)
            vessels.append((branch, width * 0.45))

    @override
    def add_lesion(self, mask: np.ndarray) -> None:
        self.picture = over(self.picture, 0.95 * mask, (0.3, 0.02, 0.02))

    @override
    def finish(self) -> np.ndarray:
        return (self.picture + 0.012 * self.canvas.grain()[..., None]) * self.eye[..., None]


class Pathology(Anatomy):
    """Tissue section stained with hematoxylin and eosin: pink stroma, purple nuclei, a gland around a white lumen."""

    organ, lesion, field = "gland", "tumor nest", 0.5

    @override
    def draw(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        flow = canvas.cloud(4, 2)
        turn = rng.uniform(0, np.pi)
        fibers = np.sin((canvas.x * float(np.cos(turn)) + canvas.y * float(np.sin(turn))) * 34 + 3.5 * flow)
        pink = np.array([0.91, 0.68, 0.8], np.float32)
        picture = pink + (0.035 * fibers + 0.03 * canvas.cloud(20, 2))[..., None] * np.array(
            [0.6, 1.2, 0.8], np.float32
        )
        gaps = np.clip(np.abs(flow) * -9 + 1, 0, 1) * (fibers > 0.3)
        picture = over(picture, 0.7 * gaps, (0.97, 0.94, 0.96))
        grid = np.stack(np.meshgrid(*[np.arange(-1, 1.1, 0.13)] * 2), -1).reshape(-1, 2)
        nuclei = grid + rng.uniform(-0.05, 0.05, grid.shape)
        picture = over(picture, 0.9 * canvas.blobs(nuclei, 0.027, 0.4), (0.42, 0.27, 0.6))
        x, y = rng.uniform(-0.4, 0.4, 2).tolist()
        rx, ry = rng.uniform(0.26, 0.38, 2).tolist()
        self.width = canvas.pixels(2 * rx)
        picture = over(picture, canvas.ellipse(x, y, rx + 0.03, ry + 0.03), (0.96, 0.82, 0.9))
        picture = over(picture, canvas.ellipse(x, y, rx, ry), (0.8, 0.52, 0.72))
        lumen = canvas.ellipse(x, y, rx - 0.15, ry - 0.15, wobble=0.12)
        picture = over(picture, lumen, (0.97, 0.95, 0.97))
        around = np.linspace(0, 2 * np.pi, int(60 * (rx + ry)))[:-1]
        ring = np.stack([x + (rx - 0.04) * np.cos(around), y + (ry - 0.04) * np.sin(around)], 1)
        picture = over(picture, canvas.blobs(ring, 0.03, 0.3), (0.34, 0.2, 0.55))
        self.region = canvas.ellipse(x, y, rx + 0.06, ry + 0.06) < 0.01
        return picture

    @override
    def add_lesion(self, mask: np.ndarray) -> None:
        self.picture = over(self.picture, mask, (0.52, 0.3, 0.6))
        rows, columns = np.nonzero(mask > 0.95)
        step = max(1, len(rows) // 40)
        centers = np.stack([columns, rows], 1)[::step] * (2 / self.canvas.size) - 1
        crowd = self.canvas.blobs(centers + self.canvas.rng.uniform(-0.01, 0.01, centers.shape), 0.017, 0.4)
        self.picture = over(self.picture, crowd * mask, (0.2, 0.08, 0.36))

    @override
    def finish(self) -> np.ndarray:
        return self.picture + 0.012 * self.canvas.grain()[..., None]


class Endoscopy(Anatomy):
    """View along the bowel: folds of red mucosa around a dark lumen, with highlights, in an octagonal frame."""

    organ, lesion, field = "lumen", "polyp", 60.0

    @override
    def draw(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        x, y = rng.uniform(-0.3, 0.3, 2).tolist()
        wide, tall = rng.uniform(0.2, 0.32, 2).tolist()
        self.width = canvas.pixels(2 * wide)
        dx, dy = canvas.x - np.float32(x), canvas.y - np.float32(y)
        radius, turn = np.hypot(dx / wide, dy / tall), np.arctan2(dy, dx)
        wavy = radius * (1 + 0.06 * np.sin(3 * turn + rng.uniform(0, 6)) + 0.03 * canvas.cloud(5))
        phase = np.log(wavy + 0.2) * 13 + rng.uniform(0, 6)
        folds = (phase / (2 * np.pi)) % 1
        shade = np.clip(0.3 + 0.33 * np.log1p(radius), 0, 0.95) * (
            0.74 + 0.4 * folds**1.5 * np.clip((1 - folds) * 12, 0, 1)
        )
        shade = shade + 0.03 * canvas.cloud(10, 3)
        picture = shade[..., None] * np.array([1.05, 0.52, 0.42], np.float32)
        paths = []
        for _ in range(16):
            start, way = rng.uniform(-0.9, 0.9, 2), rng.uniform(0, 2 * np.pi)
            bend = way + np.cumsum(rng.normal(0, 0.35, 9))
            paths.append((start + 0.05 * np.cumsum(np.stack([np.cos(bend), np.sin(bend)], 1), 0), 0.008))
        picture = over(picture, 0.4 * canvas.strokes(paths), (0.55, 0.1, 0.1))
        picture = over(picture, canvas.ellipse(x, y, wide, tall, soft=2), (0.1, 0.03, 0.03))
        spots = rng.uniform(-0.85, 0.85, (14, 2))
        wet = canvas.blobs(spots, 0.022, 0.7) * (radius > 1.4)
        picture = over(picture, 0.9 * wet, (1.0, 0.96, 0.94))
        self.frame = edge((1.38 - np.abs(canvas.x) - np.abs(canvas.y)) * canvas.size / 2)
        self.frame = self.frame * edge((0.96 - np.maximum(np.abs(canvas.x), np.abs(canvas.y))) * canvas.size / 2)
        inside = (np.abs(canvas.x) + np.abs(canvas.y) < 1.3) & (np.maximum(np.abs(canvas.x), np.abs(canvas.y)) < 0.9)
        self.region = inside & (canvas.ellipse(x, y, wide + 0.05, tall + 0.05) < 0.01)
        return picture

    @override
    def add_lesion(self, mask: np.ndarray) -> None:
        rows, columns = np.nonzero(mask > 0.5)
        left, top, span = int(columns.min()), int(rows.min()), max(int(np.ptp(columns)), int(np.ptp(rows)), 1)
        grid = np.arange(self.canvas.size, dtype=np.float32)
        u, v = (grid[None, :] - left) / span, (grid[:, None] - top) / span
        lit = np.clip(1.15 - 0.9 * np.hypot(u - 0.35, v - 0.3), 0.3, 1.15)
        skin = lit[..., None] * np.array([1.0, 0.66, 0.52], np.float32)
        self.picture = over(self.picture, mask, skin)
        self.picture = over(self.picture, mask * np.exp(-((u - 0.33) ** 2 + (v - 0.28) ** 2) / 0.012), 1.0)

    @override
    def finish(self) -> np.ndarray:
        return (self.picture + 0.012 * self.canvas.grain()[..., None]) * self.frame[..., None]
