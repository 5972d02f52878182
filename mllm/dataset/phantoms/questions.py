"""Questions about phantoms in several phrasings, with their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mllm.dataset.phantoms.phantom import MAX_LESIONS, Phantom
from mllm.structures import Mark


@dataclass(frozen=True)
class Question:
    """A question about a phantom with its answer, marks and measures."""

    text: str
    answer: str
    marks: list[Mark] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)


def _modality(phantom: Phantom) -> tuple[list[str], Question]:
    phrasings = [
        "Which imaging modality is this?",
        "What kind of medical image is shown?",
        "Name the modality of this image.",
        "How was this image made?",
    ]
    return phrasings, Question("", phantom.modality)


def _classification(phantom: Phantom) -> tuple[list[str], Question]:
    phrasings = [
        f"Does this image show {with_article(phantom.lesion)}?",
        f"Is there {with_article(phantom.lesion)}?",
        f"Can {with_article(phantom.lesion)} be seen?",
    ]
    return phrasings, Question("", "yes" if phantom.boxes else "no", _marks(phantom))


def _detection(phantom: Phantom) -> tuple[list[str], Question]:
    phrasings = [
        f"Where is the {phantom.lesion}? Give its box as [x1, y1, x2, y2] in pixels.",
        f"Give the box [x1, y1, x2, y2] in pixels around the {phantom.lesion}.",
        f"Locate the {phantom.lesion}: answer with [x1, y1, x2, y2] in pixels.",
    ]
    return phrasings, Question("", str(list(phantom.boxes[0])), _marks(phantom))


def _counting(phantom: Phantom) -> tuple[list[str], Question]:
    phrasings = [
        f"How many {plural(phantom.lesion)} are visible?",
        f"Count the {plural(phantom.lesion)}.",
        f"What is the number of {plural(phantom.lesion)} in this image?",
    ]
    return phrasings, Question("", str(len(phantom.boxes)), _marks(phantom))


def _regression(phantom: Phantom) -> tuple[list[str], Question]:
    scale = f"A pixel is {phantom.spacing:g} mm wide."
    phrasings = [
        f"How wide is the {phantom.organ}? {scale}",
        f"{scale} Measure the width of the {phantom.organ} in mm.",
        f"What is the width of the {phantom.organ} from left to right? {scale}",
    ]
    measures = {f"{phantom.organ} width": phantom.millimeters}
    return phrasings, Question("", f"{phantom.millimeters:.3g} mm", _marks(phantom), measures)


def _report(phantom: Phantom) -> tuple[list[str], Question]:
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
    return phrasings, Question("", text, _marks(phantom))


TASKS: dict[str, Callable[[Phantom], tuple[list[str], Question]]] = {
    "modality": _modality,
    "classification": _classification,
    "detection": _detection,
    "counting": _counting,
    "regression": _regression,
    "report": _report,
}


def draw_lesion_count(task: str, rng: np.random.Generator) -> int:
    """Return a random number of lesions that balances the answers of a task and makes its question unambiguous."""
    if task == "detection":
        return 1
    count = int(rng.integers(1, MAX_LESIONS + 1))
    return int(rng.integers(2)) * count if task == "classification" else int(rng.integers(MAX_LESIONS + 1))


def draw_question(phantom: Phantom, task: str, rng: np.random.Generator) -> Question:
    """Return a question of a task about a phantom in a random phrasing, with its answer."""
    phrasings, question = TASKS[task](phantom)
    return Question(phrasings[int(rng.integers(len(phrasings)))], question.answer, question.marks, question.measures)


def plural(noun: str) -> str:
    """Return the plural of a lesion's name."""
    return f"{noun[:-1]}ies" if noun.endswith("ty") else f"{noun}es" if noun.endswith("s") else f"{noun}s"


def with_article(noun: str) -> str:
    """Return the noun with its indefinite article: `an MRI`, `a CT`."""
    return f"{'an' if noun[0] in 'aeiou' or noun in ('MRI', 'X-ray') else 'a'} {noun}"


def _marks(phantom: Phantom) -> list[Mark]:
    pairs = zip(phantom.boxes, phantom.masks, strict=True)
    return [Mark(box=tuple(map(float, box)), mask=mask) for box, mask in pairs]  # type: ignore[arg-type]
