"""Generated pictures with questions about places, whose true boxes and masks are known: need no file."""

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
"""Questions about lesions; the second gap is the modality's."""
COLORS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.7, 0.2),
    "blue": (0.15, 0.3, 0.9),
    "yellow": (0.9, 0.85, 0.15),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle")


class GeneratedDataset(SampleDataset):
    """Pictures that depend on (seed, number) alone, `image_size` pixels square; two seeds share none."""

    has_measures = False
    seed_from = "split"
    least_size: ClassVar[int] = 32

    def __init__(self, size: int = 64, seed: int = 0, image_size: int = 224) -> None:
        if size < 1:
            raise ConfigError(f"size must be at least 1, not {size}")
        if image_size < self.least_size:
            raise ConfigError(f"image_size must be at least {self.least_size}, not {image_size}")
        self.size, self.seed, self.image_size = size, seed, image_size

    @abstractmethod
    def drawn(self, index: int, rng: np.random.Generator, words: np.random.Generator) -> Sample:
        """The sample of a number; `words` draws the phrasing, `rng` all else."""

    def __len__(self) -> int:
        return self.size

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """A picture, a question, and an answer whose marks are true."""
        index = self._checked(index)
        words = np.random.default_rng((self.seed, index, 1, epoch))
        sample = self.drawn(index, np.random.default_rng((self.seed, index, 0)), words)
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
    """Where are the lesions of a phantom? The answer names each by its box and mask, the largest first.

    `lesions` is the least and the most of one picture; where there is none, the answer says so.
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
                raise ConfigError(f"PhantomBoxDataset knows no modality '{name}'{hint(name, MODALITIES)}")
        if len(lesions) != 2 or not 0 <= lesions[0] <= lesions[1] <= 5:
            raise ConfigError(f"lesions must be the least and the most, from 0 to 5, not {lesions!r}")
        self.lesions = (int(lesions[0]), int(lesions[1]))

    @override
    def drawn(self, index: int, rng: np.random.Generator, words: np.random.Generator) -> Sample:
        modality = self.modalities[index % len(self.modalities)]
        phantom = draw(modality, rng, self.image_size, int(rng.integers(self.lesions[0], self.lesions[1] + 1)))
        marks = [
            Mark(box=tuple(float(x) for x in box), mask=mask)  # type: ignore[arg-type]
            for box, mask in zip(phantom.boxes, phantom.masks, strict=True)
        ]
        question = LESIONS[int(words.integers(len(LESIONS)))].format(phantom.lesion, modality)
        everything = (tuple(range(len(marks))),)
        answer = Turn("assistant", f"Answer: {BOX} .", everything) if marks else Turn("assistant", "Answer: none.")
        return Sample([Turn("user", f"{IMAGE} {question}"), answer], [phantom.image], marks=marks)


@DATASETS.register_module()
class SceneDataset(GeneratedDataset):
    """Where is the red triangle? One to `objects` colored shapes on a texture, each unlike the others.

    The answer names one of them by its box and mask; with `named` it says before what is there, as reports do.
    """

    def __init__(
        self, size: int = 64, seed: int = 0, image_size: int = 224, objects: int = 3, named: bool = False
    ) -> None:
        super().__init__(size, seed, image_size)
        if not 1 <= objects <= 6:
            raise ConfigError(f"objects must be from 1 to 6, not {objects}")
        self.objects, self.named = objects, named

    @override
    def drawn(self, index: int, rng: np.random.Generator, words: np.random.Generator) -> Sample:
        names = [(color, shape) for color in COLORS for shape in SHAPES]
        chosen = rng.choice(len(names), size=int(rng.integers(1, self.objects + 1)), replace=False)
        picture = 0.45 + 0.25 * np.repeat(_texture(rng, self.image_size)[..., None], 3, axis=2)
        masks: list[np.ndarray] = []
        for number in chosen:
            mask = _placed(names[number][1], rng, self.image_size, masks)
            if mask is not None:
                masks.append(mask)
                picture[mask] = np.array(COLORS[names[number][0]]) + rng.normal(0, 0.02, (int(mask.sum()), 3))
        color, shape = names[chosen[0]]
        template = templates.RES[int(words.integers(len(templates.RES)))]
        question = template.replace("<expr>", f"the {color} {shape}")
        pixels = np.clip(255 * (picture + rng.normal(0, 0.02, picture.shape)), 0, 255).astype(np.uint8)
        mark = Mark(box=tuple(float(x) for x in tight_box(masks[0])), mask=masks[0])  # type: ignore[arg-type]
        answer = f"The {shape} in {color}: {BOX} ." if self.named else f"Answer: {BOX} ."
        turns = [Turn("user", f"{IMAGE} {question}"), Turn("assistant", answer, ((0,),))]
        return Sample(turns, [Image.fromarray(pixels)], marks=[mark])


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth noise [H, W] in [0, 1]."""
    coarse = Image.fromarray((255 * rng.random((8, 8))).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), float) / 255


def _placed(shape: str, rng: np.random.Generator, size: int, others: Sequence[np.ndarray]) -> np.ndarray | None:
    """The mask of a shape at a place where it touches none of the others; None where none was found."""
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
        if not any((mask & other).any() for other in others):
            return mask
    return None
