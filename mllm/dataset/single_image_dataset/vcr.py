"""Visual commonsense: questions about numbered people, their answers and why (VCR, arXiv:1811.10830)."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answered, boxes_in, words
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import BOX, Sample

LETTERS = "ABCDEFGH"


@DATASETS.register_module()
class VCRDataset(GroundingDataset):
    """A question, its answer and the reason for it.

    Row: {"img_fn", "boxes", "question", "answer_choices", "answer_label", "rationale_choices", "rationale_label"};
    texts are lists of words, in which a list of numbers stands for people, by their boxes. A box may have a score.
    """

    required = ("img_fn", "boxes", "question", "answer_choices", "answer_label")
    sentences = templates.VQA_REASON_BOXES
    offers_choices = False

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_fn"])
        marks = boxes_in(image, [box[:4] for box in row["boxes"]])
        asked, places = spoken(row["question"], len(marks), "question")
        answer, named = spoken(_choice(row, "answer"), len(marks), "answer_choices")
        if self.offers_choices:
            for letter, choice in zip(LETTERS, row["answer_choices"], strict=False):
                text, more = spoken(choice, len(marks), "answer_choices")
                asked, places = f"{asked} {letter}: {text}", places + more
            answer, named = f"The answer is {LETTERS[int(row['answer_label'])]}.", []
        elif "rationale_choices" in row:
            reason, more = spoken(_choice(row, "rationale"), len(marks), "rationale_choices")
            answer, named = f"{answer} {reason}", named + more
        question = self.asked(self.sentence(rng, question=asked), places)
        return Sample([question, answered(answer, named)], [image], marks=marks)

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """What the first lesion is."""
        return {
            "img_fn": row["image"],
            "boxes": row["boxes"],
            "question": ["What", "is", [0], "?"],
            "answer_choices": [[[0], "is", "a", "lesion", "."], [[0], "is", "a", "vessel", "."]],
            "answer_label": 0,
            "rationale_choices": [["It", "is", "round", "."]],
            "rationale_label": 0,
        }


@DATASETS.register_module()
class VCRPredDataset(VCRDataset):
    """Which choice is right? The rows of `VCRDataset`; the choices stand in the question, the answer is a letter."""

    sentences = templates.VQA
    offers_choices = True


def spoken(text: Any, boxes: int, field: str) -> tuple[str, list[list[int]]]:
    """A list of words as a sentence, with `<box>` for the people that it names, and the boxes of each."""
    if not isinstance(text, list):
        raise DataError(f"field '{field}' must be a list of words")
    parts, places = "", list[list[int]]()
    for word in text:
        if isinstance(word, list):
            group = [int(index) for index in word]
            if any(not 0 <= index < boxes for index in group):
                raise DataError(f"field '{field}' names people {group}, and there are {boxes} boxes (from 0)")
            places.append(group)
            parts += f" {BOX}"
        else:
            plain = words(word, field)
            parts += plain if plain in ".,?!;:'" or plain.startswith("'") else f" {plain}"
    return parts.strip(), places


def _choice(row: dict[str, Any], kind: str) -> Any:
    """The right one of the row's answers or rationales."""
    choices, label = row[f"{kind}_choices"], row[f"{kind}_label"]
    if not isinstance(label, int) or not 0 <= label < len(choices):
        raise DataError(f"field '{kind}_label' is {label!r}, and there are {len(choices)} choices (from 0)")
    return choices[label]
