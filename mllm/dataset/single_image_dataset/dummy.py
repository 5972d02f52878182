"""Questions with true answers about generated pictures: needs no file and no download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from mllm.dataset.base import SampleDataset
from mllm.dataset.phantoms.phantom import MODALITIES, draw
from mllm.dataset.phantoms.questions import TASKS, ask, lesions_for
from mllm.errors import ConfigError, hint
from mllm.registry import DATASETS
from mllm.structures import IMAGE, Sample, Turn


@DATASETS.register_module()
class DummyDataset(SampleDataset):
    """Generated pictures of seven modalities with questions of several tasks, whose true answers are known.

    Sample i depends on (seed, i) alone, its phrasing on the epoch too; two seeds share no picture. Tasks and
    modalities take turns, so every modality has the same share of every task. `image_size` is in pixels.
    """

    has_measures = False
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
        """A picture, a question and its true answer."""
        index = self._checked(index)
        turn, which = divmod(index, len(self.tasks))
        task, modality = self.tasks[which], self.modalities[turn % len(self.modalities)]
        rng = np.random.default_rng((self.seed, index, 0))
        phantom = draw(modality, rng, self.image_size, lesions_for(task, rng))
        # A stream of its own: what is drawn for the picture must not choose the words.
        asked = ask(phantom, task, np.random.default_rng((self.seed, index, 1, epoch)))
        return Sample(
            turns=[Turn("user", f"{IMAGE} {asked.question}"), Turn("assistant", asked.answer)],
            images=[phantom.image],
            marks=asked.marks,
            measures=asked.measures,
            group=self.group(index),
            source=self.describe(index),
        )

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return f"DummyDataset(seed={self.seed}), sample {self._checked(index)}"

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return f"phantom {self.seed}-{self._checked(index)}"

    def _checked(self, index: int) -> int:
        if not -self.size <= index < self.size:
            raise IndexError(f"sample {index} of {self.size}")
        return int(index) % self.size


def _known(names: Sequence[str], known: tuple[str, ...], what: str) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in known:
            raise ConfigError(f"DummyDataset knows no {what} '{name}'{hint(str(name), known)}")
    if not names:
        raise ConfigError(f"DummyDataset needs at least one {what} of {', '.join(known)}")
    return names
