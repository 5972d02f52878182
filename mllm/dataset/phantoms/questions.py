"""Questions about generated pictures, in several phrasings, with their true answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mllm.dataset.phantoms.phantom import MOST_LESIONS, Phantom
from mllm.structures import Mark


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
