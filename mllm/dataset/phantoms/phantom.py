"""Phantoms: generated images of seven modalities in which all lesions and widths are known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mllm.dataset.phantoms.anatomies import CT, MRI, Anatomy, Ultrasound, XRay
from mllm.dataset.phantoms.canvas import Canvas
from mllm.dataset.phantoms.color_anatomies import Endoscopy, Fundus, Pathology
from mllm.errors import ConfigError, hint

ANATOMIES: dict[str, type[Anatomy]] = {
    "CT": CT,
    "MRI": MRI,
    "X-ray": XRay,
    "ultrasound": Ultrasound,
    "fundus": Fundus,
    "pathology": Pathology,
    "endoscopy": Endoscopy,
}
MODALITIES = tuple(ANATOMIES)
MAX_LESIONS = 5


@dataclass(frozen=True)
class Phantom:
    """A generated image with its ground truth."""

    image: Image.Image
    """RGB, square."""
    modality: str
    masks: list[np.ndarray]
    """One [H, W] bool per lesion, largest first; lesions touch neither each other nor the border."""
    boxes: list[tuple[int, int, int, int]]
    """x1 y1 x2 y2 in pixels: the edges of the smallest box, so its width is x2 - x1."""
    lesion: str
    """Name of the lesions of this modality."""
    organ: str
    width: float
    """Width of the organ in pixels, from left to right."""
    spacing: float
    """Millimeters per pixel."""

    @property
    def millimeters(self) -> float:
        """Width of the organ in mm."""
        return self.width * self.spacing


def draw(modality: str, rng: np.random.Generator, size: int = 224, lesions: int | None = None) -> Phantom:
    """Return a phantom of `size` x `size` pixels with `lesions` lesions, or a random number from 0 to 5.

    Fewer lesions are drawn if they do not fit.
    Raises `ConfigError` for an unknown modality or fewer than 32 pixels.
    """
    if modality not in ANATOMIES:
        raise ConfigError(f"unknown modality '{modality}'{hint(modality, MODALITIES)}")
    if size < 32:
        raise ConfigError(f"image_size {size} is too small for a phantom: use at least 32")
    count = int(rng.integers(MAX_LESIONS + 1)) if lesions is None else lesions
    canvas = Canvas(size, rng)
    anatomy = ANATOMIES[modality](canvas)
    soft_masks = _place(canvas, anatomy.region, count)
    for mask in soft_masks:
        anatomy.add_lesion(mask)
    pixels = np.clip(anatomy.finish() * 255, 0, 255).astype(np.uint8)
    masks = sorted((mask > 0.5 for mask in soft_masks), key=lambda mask: -int(mask.sum()))
    return Phantom(
        image=Image.fromarray(pixels).convert("RGB"),
        modality=modality,
        masks=masks,
        boxes=[tight_box(mask) for mask in masks],
        lesion=anatomy.lesion,
        organ=anatomy.organ,
        width=anatomy.width,
        spacing=float(f"{anatomy.field / size:.3g}"),
    )


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the smallest box x1 y1 x2 y2 in pixels around a mask [H, W]; x2 and y2 are one past the last pixel."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _place(canvas: Canvas, region: np.ndarray, count: int) -> list[np.ndarray]:
    """Return soft masks of up to `count` lesions inside `region` that do not touch each other."""
    rng, size = canvas.rng, canvas.size
    candidates = np.flatnonzero(region)
    around = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.stack([np.cos(around), np.sin(around)], 1)
    placed: list[tuple[float, float, float]] = []
    masks: list[np.ndarray] = []
    for _ in range(40 * count if len(candidates) else 0):
        if len(masks) == count:
            break
        row, column = divmod(int(rng.choice(candidates)), size)
        x, y = (column + 0.5) * 2 / size - 1, (row + 0.5) * 2 / size - 1
        radius = rng.uniform(0.05, 0.115)
        border = ((np.array([x, y]) + circle * radius * 1.2 + 1) * size / 2).astype(int)
        if border.min() < 1 or border.max() > size - 2 or not region[border[:, 1], border[:, 0]].all():
            continue
        gap = 3 * 2 / size + 0.02
        if any(np.hypot(x - ox, y - oy) < 1.2 * (radius + other) + gap for ox, oy, other in placed):
            continue
        placed.append((x, y, radius))
        shape = rng.uniform(0.75, 1.0)
        masks.append(canvas.ellipse(x, y, radius, radius * shape, rng.uniform(0, np.pi), wobble=0.1))
    return masks
