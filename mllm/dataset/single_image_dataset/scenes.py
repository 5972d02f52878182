"""Datasets of generated images with questions whose boxes and masks are known."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.base import SampleDataset
from mllm.dataset.phantoms.phantom import MODALITIES, draw, tight_box
from mllm.errors import ConfigError, hint
from mllm.registry import DATASETS
from mllm.structures import BOX, IMAGE, Mark, Sample, Turn

LESIONS = (
    "Where is every {}?",
    "Find each {} in this {} image.",
    "Mark each {} that you see.",
    "Locate every {} of this {} image.",
    "Give the place of each {}.",
    "Is there any {}? Show where.",
    "Point out each {}.",
    "Which regions of the image show {}?",
)
"""Questions about lesions; the second placeholder is the modality."""
COLORS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.7, 0.2),
    "blue": (0.15, 0.3, 0.9),
    "yellow": (0.9, 0.85, 0.15),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle")


class GeneratedDataset(SampleDataset):
    """Base of datasets of generated images of `image_size` x `image_size` pixels, which depend on (seed, index)."""

    has_images = True
    has_measures = False
    reads_files = False
    seed_from = "split"
    min_image_size: ClassVar[int] = 32

    def __init__(self, size: int = 64, seed: int = 0, image_size: int = 224) -> None:
        if size < 1:
            raise ConfigError(f"size must be at least 1, not {size}")
        if image_size < self.min_image_size:
            raise ConfigError(f"image_size must be at least {self.min_image_size}, not {image_size}")
        self.size, self.seed, self.image_size = size, seed, image_size

    @abstractmethod
    def generate(self, index: int, rng: np.random.Generator, text_rng: np.random.Generator) -> Sample:
        """Return the sample of an index; `text_rng` selects the phrasing, `rng` everything else."""

    def __len__(self) -> int:
        return self.size

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return an image, a question, and an answer with exact marks."""
        index = self._checked(index)
        text_rng = np.random.default_rng((self.seed, index, 1, epoch))
        sample = self.generate(index, np.random.default_rng((self.seed, index, 0)), text_rng)
        return Sample(
            sample.turns, sample.images, marks=sample.marks, group=self.group(index), source=self.describe(index)
        )

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return f"{type(self).__name__}(seed={self.seed}), sample {self._checked(index)}"

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return f"{type(self).__name__} {self.seed}-{self._checked(index)}"

    def _checked(self, index: int) -> int:
        if not -self.size <= index < self.size:
            raise IndexError(f"sample {index} of {self.size}")
        return int(index) % self.size


@DATASETS.register_module()
class PhantomBoxDataset(GeneratedDataset):
    """Phantoms with the boxes and masks of all lesions as answer, the largest first.

    `lesions` is the minimum and maximum number of lesions per image. Without lesions the answer is "none".
    """

    def __init__(
        self,
        size: int = 64,
        seed: int = 0,
        image_size: int = 224,
        modalities: Sequence[str] | None = None,
        lesions: Sequence[int] = (0, 3),
    ) -> None:
        super().__init__(size, seed, image_size)
        self.modalities = tuple(MODALITIES if modalities is None else modalities)
        for name in self.modalities:
            if name not in MODALITIES:
                raise ConfigError(f"PhantomBoxDataset has no modality '{name}'{hint(name, MODALITIES)}")
        if len(lesions) != 2 or not 0 <= lesions[0] <= lesions[1] <= 5:
            raise ConfigError(f"lesions must be a minimum and a maximum from 0 to 5, not {lesions!r}")
        self.lesions = (int(lesions[0]), int(lesions[1]))

    @override
    def generate(self, index: int, rng: np.random.Generator, text_rng: np.random.Generator) -> Sample:
        modality = self.modalities[index % len(self.modalities)]
        phantom = draw(modality, rng, self.image_size, int(rng.integers(self.lesions[0], self.lesions[1] + 1)))
        marks = [
            Mark(box=tuple(float(x) for x in box), mask=mask)  # type: ignore[arg-type]
            for box, mask in zip(phantom.boxes, phantom.masks, strict=True)
        ]
        question = LESIONS[int(text_rng.integers(len(LESIONS)))].format(phantom.lesion, modality)
        group = (tuple(range(len(marks))),)
        answer = Turn("assistant", f"Answer: {BOX} .", group) if marks else Turn("assistant", "Answer: none.")
        return Sample([Turn("user", f"{IMAGE} {question}"), answer], [phantom.image], marks=marks)


@DATASETS.register_module()
class SceneDataset(GeneratedDataset):
    """Images of one to `objects` different colored shapes on a texture, with a question about one of them.

    The answer is the box and mask of that shape; with `named` the text before it names the shape, as in reports.
    """

    def __init__(
        self, size: int = 64, seed: int = 0, image_size: int = 224, objects: int = 3, named: bool = False
    ) -> None:
        super().__init__(size, seed, image_size)
        if not 1 <= objects <= 6:
            raise ConfigError(f"objects must be from 1 to 6, not {objects}")
        self.objects, self.named = objects, named

    @override
    def generate(self, index: int, rng: np.random.Generator, text_rng: np.random.Generator) -> Sample:
        names = [(color, shape) for color in COLORS for shape in SHAPES]
        chosen = rng.choice(len(names), size=int(rng.integers(1, self.objects + 1)), replace=False)
        picture = 0.45 + 0.25 * np.repeat(_texture(rng, self.image_size)[..., None], 3, axis=2)
        masks: list[np.ndarray] = []
        for number in chosen:
            mask = _place_shape(names[number][1], rng, self.image_size, masks)
            if mask is not None:
                masks.append(mask)
                picture[mask] = np.array(COLORS[names[number][0]]) + rng.normal(0, 0.02, (int(mask.sum()), 3))
        color, shape = names[chosen[0]]
        template = templates.RES[int(text_rng.integers(len(templates.RES)))]
        question = template.replace("<expr>", f"the {color} {shape}")
        pixels = np.clip(255 * (picture + rng.normal(0, 0.02, picture.shape)), 0, 255).astype(np.uint8)
        mark = Mark(box=tuple(float(x) for x in tight_box(masks[0])), mask=masks[0])  # type: ignore[arg-type]
        answer = f"The {shape} in {color}: {BOX} ." if self.named else f"Answer: {BOX} ."
        turns = [Turn("user", f"{IMAGE} {question}"), Turn("assistant", answer, ((0,),))]
        return Sample(turns, [Image.fromarray(pixels)], marks=[mark])


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return smooth noise [H, W] in [0, 1]."""
    coarse = Image.fromarray((255 * rng.random((8, 8))).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), float) / 255


def _place_shape(shape: str, rng: np.random.Generator, size: int, placed: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the mask of a shape at a random position without overlap; None after 50 failed attempts."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    for _ in range(50):
        radius = rng.uniform(0.1, 0.2)
        center_x, center_y = rng.uniform(radius, 1 - radius, 2)
        dx, dy = (x - center_x) / radius, (y - center_y) / radius
        if shape == "circle":
            mask = dx**2 + dy**2 < 1
        elif shape == "square":
            mask = np.maximum(abs(dx), abs(dy)) < 0.85
        else:
            mask = (dy < 0.9) & (2 * abs(dx) - 0.9 < dy)
        if not any((mask & other).any() for other in placed):
            return mask
    return None
