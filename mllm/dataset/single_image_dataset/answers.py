"""Datasets of questions with short answers: VQAv2, VQA with explanations, POPE, and LLaVA conversations."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answer_turn, plain_text
from mllm.dataset.tables.values import choose_answer, is_empty, text_of
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import IMAGE, Role, Sample, Turn


class _QuestionDataset(GroundingDataset):
    """Base of datasets whose rows hold a question that is inserted into a random template."""

    default_templates = templates.VQA

    def question_of(self, row: dict[str, Any], rng: np.random.Generator, field: str = "question") -> Turn:
        """Return the question in `field` in a random template, as a turn."""
        return self.question_turn(self.draw_template(rng, question=plain_text(row[field], field)))

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a question about the number of lesions, with the field names of all datasets in this module."""
        question, answer = "How many lesions are there?", str(len(row["boxes"]))
        return {
            **dict.fromkeys(("image_path", "file_path", "image", "img_path"), row["image"]),
            "question": question,
            "text": "Is there a lesion?",
            "label": "yes",
            "annotation": {"multiple_choice_answer": answer},
            "multiple_choice_answer": answer,
            "explanation": [f"I count {answer} of them."],
            "conversations": [{"from": "human", "value": f"{IMAGE}\n{question}"}, {"from": "gpt", "value": answer}],
        }


@DATASETS.register_module()
class VQAv2Dataset(_QuestionDataset):
    """VQAv2. Row: {"image_path", "question", "annotation": {"multiple_choice_answer"}}."""

    required = ("image_path", "question", "annotation")

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        annotation = row["annotation"]
        if not isinstance(annotation, dict) or "multiple_choice_answer" not in annotation:
            raise DataError("field 'annotation' needs a 'multiple_choice_answer'")
        answer = plain_text(annotation["multiple_choice_answer"], "annotation")
        return Sample(
            [self.question_of(row, rng), answer_turn(f"The answer is {answer}.")], [self.read_image(row["image_path"])]
        )


@DATASETS.register_module()
class VQAEXDataset(_QuestionDataset):
    """VQA with explanations. Row: {"file_path", "question", "explanation" or "justification", the answer}.

    The answer is `multiple_choice_answer`, or the most frequent of `multiple_answers`. From a list of explanations one
    is chosen at random.
    """

    required = ("file_path", "question")
    optional = ("explanation", "justification", "multiple_choice_answer", "multiple_answers")
    default_templates = templates.VQA_REASON

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        reasons = next((row[name] for name in ("explanation", "justification") if not is_empty(row.get(name))), None)
        if reasons is None:
            raise DataError("field 'explanation' or 'justification' is missing")
        if isinstance(reasons, list):
            reasons = [reason for reason in reasons if not is_empty(reason)]
            reasons = reasons[int(rng.integers(len(reasons)))] if reasons else None
        answer = row.get("multiple_choice_answer")
        if is_empty(answer) and isinstance(answers := row.get("multiple_answers"), list) and answers:
            answer = choose_answer(answers, "majority", "multiple_answers")
        if is_empty(answer):
            raise DataError("field 'multiple_choice_answer' or 'multiple_answers' is missing")
        reason = plain_text(reasons, "explanation").rstrip(".")
        text = f"{reason}. The answer is {plain_text(answer, 'multiple_choice_answer')}."
        return Sample([self.question_of(row, rng), answer_turn(text)], [self.read_image(row["file_path"])])


@DATASETS.register_module()
class POPEVQADataset(_QuestionDataset):
    """POPE: yes-or-no questions about the presence of objects. Row: {"image", "text", "label"}, label yes or no."""

    required = ("image", "text", "label")

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        label = str(row["label"]).strip().lower()
        if label not in ("yes", "no"):
            raise DataError(f"field 'label' must be yes or no, not {row['label']!r}")
        return Sample(
            [self.question_of(row, rng, "text"), answer_turn(f"The answer is {label}.")],
            [self.read_image(row["image"])],
        )


@DATASETS.register_module()
class InstructDataset(_QuestionDataset):
    """LLaVA conversations about one image. Row: {"image", "conversations": [{"from", "value"}]}.

    `add_coco_prefix` adds the prefix of COCO train2014 to the image name.
    """

    required = ("image", "conversations")

    def __init__(self, data_path: str, image_folder: str | None = None, add_coco_prefix: bool = False) -> None:
        super().__init__(data_path, image_folder)
        self.prefix = "COCO_train2014_" if add_coco_prefix else ""

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        roles: dict[str, Role] = {"human": "user", "gpt": "assistant"}
        turns = []
        for number, turn in enumerate(row["conversations"], start=1):
            if not isinstance(turn, dict) or turn.get("from") not in roles or "value" not in turn:
                raise DataError(f"turn {number} of 'conversations' needs 'from' (human or gpt) and 'value'")
            text = text_of(turn["value"], "value").replace(IMAGE, "")
            turns.append(Turn(roles[turn["from"]], plain_text(text, "conversations")))
        if [turn.role for turn in turns[:2]] != ["user", "assistant"]:
            raise DataError("'conversations' must begin with a turn of human and a turn of gpt")
        turns[0] = Turn("user", f"{IMAGE} {turns[0].text}")
        return Sample(turns, [self.read_image(f"{self.prefix}{row['image']}")])
