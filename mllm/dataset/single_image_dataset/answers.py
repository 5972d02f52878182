"""Questions about photographs with short answers: VQAv2, VQA with explanations, POPE, and LLaVA's conversations."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answered, words
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import IMAGE, Role, Sample, Turn


class _QuestionDataset(GroundingDataset):
    """A question of a row put into a drawn sentence."""

    sentences = templates.VQA

    def question_of(self, row: dict[str, Any], rng: np.random.Generator, field: str = "question") -> Turn:
        """The question about the image."""
        return self.asked(self.sentence(rng, question=words(row[field], field)))

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """A question about the number of lesions, under every name that these datasets use."""
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
        answer = words(annotation["multiple_choice_answer"], "annotation")
        return Sample(
            [self.question_of(row, rng), answered(f"The answer is {answer}.")], [self.read_image(row["image_path"])]
        )


@DATASETS.register_module()
class VQAEXDataset(_QuestionDataset):
    """VQA with explanations. Row: {"file_path", "question", "explanation" or "justification", the answer}.

    The answer is `multiple_choice_answer`, or the most frequent of `multiple_answers`; of a list of explanations one
    is drawn.
    """

    required = ("file_path", "question")
    sentences = templates.VQA_REASON

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        reasons = row.get("explanation") or row.get("justification")
        if not reasons:
            raise DataError("field 'explanation' or 'justification' is missing")
        reason = reasons if isinstance(reasons, str) else reasons[int(rng.integers(len(reasons)))]
        answer = row.get("multiple_choice_answer")
        if answer is None and isinstance(given := row.get("multiple_answers"), list) and given:
            answer = max(given, key=given.count)
        if answer is None:
            raise DataError("field 'multiple_choice_answer' or 'multiple_answers' is missing")
        text = f"{words(reason, 'explanation').rstrip('.')}. The answer is {words(answer, 'multiple_choice_answer')}."
        return Sample([self.question_of(row, rng), answered(text)], [self.read_image(row["file_path"])])


@DATASETS.register_module()
class POPEVQADataset(_QuestionDataset):
    """POPE: is an object there or imagined? Row: {"image", "text", "label"}, the label yes or no."""

    required = ("image", "text", "label")

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        label = str(row["label"]).strip().lower()
        if label not in ("yes", "no"):
            raise DataError(f"field 'label' is yes or no, not {row['label']!r}")
        return Sample(
            [self.question_of(row, rng, "text"), answered(f"The answer is {label}.")], [self.read_image(row["image"])]
        )


@DATASETS.register_module()
class InstructDataset(_QuestionDataset):
    """LLaVA's conversations about one image. Row: {"image", "conversations": [{"from", "value"}]}.

    `add_coco_prefix` turns the image's name into that of COCO's train2014.
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
            turns.append(Turn(roles[turn["from"]], words(str(turn["value"]).replace(IMAGE, ""), "conversations")))
        if [turn.role for turn in turns[:2]] != ["user", "assistant"]:
            raise DataError("'conversations' must begin with a question of human and an answer of gpt")
        turns[0] = Turn("user", f"{IMAGE} {turns[0].text}")
        return Sample(turns, [self.read_image(f"{self.prefix}{row['image']}")])
