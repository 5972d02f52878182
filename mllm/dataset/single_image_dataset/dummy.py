"""Dataset of generated images with questions whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from typing_extensions import override

from mllm.dataset.base import SampleDataset
from mllm.dataset.phantoms.phantom import MODALITIES, Phantom, draw
from mllm.dataset.phantoms.questions import TASKS, draw_lesion_count, draw_question
from mllm.errors import ConfigError, hint
from mllm.registry import DATASETS
from mllm.structures import IMAGE, Sample, Turn


@lru_cache(maxsize=64)
def _phantom(modality: str, task: str, seed: int, index: int, size: int) -> Phantom:
    """Return the phantom of a sample. Checks, epochs and evaluations of small runs read the same samples again."""
    rng = np.random.default_rng((seed, index, 0))
    return draw(modality, rng, size, draw_lesion_count(task, rng))


@DATASETS.register_module()
class DummyDataset(SampleDataset):
    """Generated images of seven modalities with questions of several tasks and their true answers; needs no files.

    The image of sample i depends on (seed, i), the phrasing of the question also on the epoch. Tasks and modalities
    alternate, so each modality has the same share of each task. `image_size` is in pixels.
    """

    has_images = True
    has_measures = False
    reads_files = False
    seed_from = "split"

    def __init__(
        self,
        size: int = 64,
        seed: int = 0,
        tasks: Sequence[str] = tuple(TASKS),
        image_size: int = 224,
        modalities: Sequence[str] | None = None,
    ) -> None:
        if size < 1:
            raise ConfigError(f"size must be at least 1, not {size}")
        if image_size < 32:
            raise ConfigError(f"image_size must be at least 32, not {image_size}")
        self.size, self.seed, self.image_size = size, seed, image_size
        self.tasks = _known(tasks, tuple(TASKS), "task")
        self.modalities = _known(MODALITIES if modalities is None else modalities, MODALITIES, "modality")

    def __len__(self) -> int:
        return self.size

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the sample of a row: an image, a question and its answer."""
        index = self._checked(index)
        cycle, position = divmod(index, len(self.tasks))
        task, modality = self.tasks[position], self.modalities[cycle % len(self.modalities)]
        phantom = _phantom(modality, task, self.seed, index, self.image_size)
        # A separate generator, so that the phrasing does not depend on the numbers drawn for the image.
        question = draw_question(phantom, task, np.random.default_rng((self.seed, index, 1, epoch)))
        return Sample(
            turns=[Turn("user", f"{IMAGE} {question.text}"), Turn("assistant", question.answer)],
            images=[phantom.image],
            modality=modality,
            marks=question.marks,
            measures=question.measures,
            group=self.group(index),
            source=self.describe(index),
        )

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return f"DummyDataset(seed={self.seed}), sample {self._checked(index)}"

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return f"phantom {self.seed}-{self._checked(index)}"

    @override
    def inspect(self, index: int) -> Sample:
        modality = self.modalities[self._checked(index) // len(self.tasks) % len(self.modalities)]
        return Sample(turns=[], group=self.group(index), modality=modality)

    def _checked(self, index: int) -> int:
        if not -self.size <= index < self.size:
            raise IndexError(f"sample {index} of {self.size}")
        return int(index) % self.size


def _known(names: Sequence[str], known: tuple[str, ...], kind: str) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in known:
            raise ConfigError(f"DummyDataset: unknown {kind} '{name}'{hint(str(name), known)}")
    if not names:
        raise ConfigError(f"DummyDataset needs at least one {kind}: choose from {', '.join(known)}")
    return names
