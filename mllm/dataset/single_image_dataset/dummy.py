"""Questions with true answers about generated pictures: needs no file and no download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from typing_extensions import override

from mllm.dataset.base import SampleDataset
from mllm.dataset.single_image_dataset.phantoms import MODALITIES, MOST_LESIONS, Phantom, draw
from mllm.errors import ConfigError, hint
from mllm.registry import DATASETS
from mllm.structures import IMAGE, Mark, Sample, Turn


@dataclass(frozen=True)
class Asked:
    """A question about a phantom, its true answer, and what else is known about it."""

    question: str
    answer: str
    marks: list[Mark] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)


def _modality(phantom: Phantom) -> tuple[list[str], Asked]:
    phrasings = [
        "Which imaging modality is this?",
        "What kind of medical image is shown?",
        "Name the modality of this image.",
        "How was this image made?",
    ]
    return phrasings, Asked("", phantom.modality)


def _classification(phantom: Phantom) -> tuple[list[str], Asked]:
    phrasings = [
        f"Does this image show {with_article(phantom.lesion)}?",
        f"Is there {with_article(phantom.lesion)}?",
        f"Can {with_article(phantom.lesion)} be seen?",
    ]
    return phrasings, Asked("", "yes" if phantom.boxes else "no", _marks(phantom))


def _detection(phantom: Phantom) -> tuple[list[str], Asked]:
    phrasings = [
        f"Where is the {phantom.lesion}? Give its box as [x1, y1, x2, y2] in pixels.",
        f"Give the box [x1, y1, x2, y2] in pixels around the {phantom.lesion}.",
        f"Locate the {phantom.lesion}: answer with [x1, y1, x2, y2] in pixels.",
    ]
    return phrasings, Asked("", str(list(phantom.boxes[0])), _marks(phantom))


def _counting(phantom: Phantom) -> tuple[list[str], Asked]:
    phrasings = [
        f"How many {plural(phantom.lesion)} are visible?",
        f"Count the {plural(phantom.lesion)}.",
        f"What is the number of {plural(phantom.lesion)} in this image?",
    ]
    return phrasings, Asked("", str(len(phantom.boxes)), _marks(phantom))


def _regression(phantom: Phantom) -> tuple[list[str], Asked]:
    scale = f"A pixel is {phantom.spacing:g} mm wide."
    phrasings = [
        f"How wide is the {phantom.organ}? {scale}",
        f"{scale} Measure the width of the {phantom.organ} in mm.",
        f"What is the width of the {phantom.organ} from left to right? {scale}",
    ]
    measures = {f"{phantom.organ} width": phantom.millimeters}
    return phrasings, Asked("", f"{phantom.millimeters:.3g} mm", _marks(phantom), measures)


def _report(phantom: Phantom) -> tuple[list[str], Asked]:
    count = len(phantom.boxes)
    if not count:
        finding = f"There is no {phantom.lesion}."
    else:
        x1, y1, x2, y2 = phantom.boxes[0]
        wide, tall = phantom.image.size
        place = f"{'upper' if y1 + y2 < tall else 'lower'} {'left' if x1 + x2 < wide else 'right'}"
        finding = (
            f"There is one {phantom.lesion}, in the {place} of the picture."
            if count == 1
            else f"There are {count} {plural(phantom.lesion)}, the largest in the {place} of the picture."
        )
    phrasings = ["Write a short report.", "Describe this image in two sentences.", "What are the findings?"]
    width = f"{with_article(phantom.organ)} {phantom.millimeters:.3g} mm wide"
    text = f"This is {with_article(phantom.modality)} image with {width}. {finding}"
    return phrasings, Asked("", text, _marks(phantom))


TASKS: dict[str, Callable[[Phantom], tuple[list[str], Asked]]] = {
    "modality": _modality,
    "classification": _classification,
    "detection": _detection,
    "counting": _counting,
    "regression": _regression,
    "report": _report,
}


def lesions_for(task: str, rng: np.random.Generator) -> int:
    """How many lesions a phantom gets so that a task's answers are balanced and its question has one answer."""
    if task == "detection":
        return 1
    most = int(rng.integers(1, MOST_LESIONS + 1))
    return int(rng.integers(2)) * most if task == "classification" else int(rng.integers(MOST_LESIONS + 1))


def ask(phantom: Phantom, task: str, rng: np.random.Generator) -> Asked:
    """A question of a task about a phantom, in one of several phrasings, and its true answer."""
    phrasings, asked = TASKS[task](phantom)
    return Asked(phrasings[int(rng.integers(len(phrasings)))], asked.answer, asked.marks, asked.measures)


def plural(noun: str) -> str:
    """The plural of a lesion's name."""
    return f"{noun[:-1]}ies" if noun.endswith("ty") else f"{noun}es" if noun.endswith("s") else f"{noun}s"


def with_article(noun: str) -> str:
    """The noun with the article that its sound asks for: `an MRI`, `a CT`."""
    return f"{'an' if noun[0] in 'aeiou' or noun in ('MRI', 'X-ray') else 'a'} {noun}"


def _marks(phantom: Phantom) -> list[Mark]:
    pairs = zip(phantom.boxes, phantom.masks, strict=True)
    return [Mark(box=tuple(map(float, box)), mask=mask) for box, mask in pairs]  # type: ignore[arg-type]


@DATASETS.register_module()
class DummyDataset(SampleDataset):
    """Generated pictures of seven modalities with questions of several tasks, whose true answers are known.

    Sample i depends on (seed, i) alone, its phrasing on the epoch too; two seeds share no picture. Tasks and
    modalities take turns, so every modality has the same share of every task. `image_size` is in pixels.
    """

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
