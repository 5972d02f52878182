"""Visual Commonsense Reasoning: questions about people with answers and rationales (VCR, arXiv:1811.10830)."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answer_turn, index_group, plain_text
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import BOX, Sample

LETTERS = "ABCDEFGH"


@DATASETS.register_module()
class VCRDataset(GroundingDataset):
    """VCR questions whose answers include the rationale.

    Row: {"img_fn", "boxes", "question", "answer_choices", "answer_label", "rationale_choices", "rationale_label"};
    texts are lists of words, in which a list of box indices denotes people. A fifth number of a box, a score, is
    ignored.
    """

    required = ("img_fn", "boxes", "question", "answer_choices", "answer_label")
    optional = ("rationale_choices", "rationale_label")
    default_templates = templates.VQA_REASON_BOXES
    offers_choices = False

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_fn"])
        marks = self.parse_boxes(image, [box[:4] for box in row["boxes"]])
        text, groups = parse_words(row["question"], len(marks), "question")
        answer, answer_groups = parse_words(_choice(row, "answer"), len(marks), "answer_choices")
        if self.offers_choices:
            for letter, choice in zip(LETTERS, row["answer_choices"], strict=False):
                choice_text, choice_groups = parse_words(choice, len(marks), "answer_choices")
                text, groups = f"{text} {letter}: {choice_text}", groups + choice_groups
            answer, answer_groups = f"The answer is {LETTERS[int(row['answer_label'])]}.", []
        elif "rationale_choices" in row:
            reason, reason_groups = parse_words(_choice(row, "rationale"), len(marks), "rationale_choices")
            answer, answer_groups = f"{answer} {reason}", answer_groups + reason_groups
        question = self.question_turn(self.draw_template(rng, question=text), groups)
        return Sample([question, answer_turn(answer, answer_groups)], [image], marks=marks)

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a question about the first lesion."""
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
    """VCR with rows of `VCRDataset`; the question contains the choices, the answer is a letter."""

    default_templates = templates.VQA
    offers_choices = True


def parse_words(text: Any, boxes: int, field: str) -> tuple[str, list[list[int]]]:
    """Return a list of words as a sentence with `<box>` for each list of people, and the box indices."""
    if not isinstance(text, list):
        raise DataError(f"field '{field}' must be a list of words")
    parts, groups = "", list[list[int]]()
    for word in text:
        if isinstance(word, list):
            group = index_group(word, field)
            if any(not 0 <= index < boxes for index in group):
                raise DataError(f"field '{field}' has the box indices {group}, but there are {boxes} boxes (from 0)")
            groups.append(group)
            parts += f" {BOX}"
        else:
            if isinstance(word, str) and not word.strip():
                continue
            plain = plain_text(word, field)
            parts += plain if plain in ".,?!;:'" or plain.startswith("'") else f" {plain}"
    if not parts:
        raise DataError.without_values(f"field '{field}' is empty")
    return parts.strip(), groups


def _choice(row: dict[str, Any], kind: str) -> Any:
    """Return the correct answer or rationale of the row."""
    choices, label = row[f"{kind}_choices"], row[f"{kind}_label"]
    if not isinstance(label, int) or not 0 <= label < len(choices):
        raise DataError(f"field '{kind}_label' is {label!r}, but there are {len(choices)} choices (from 0)")
    return choices[label]
