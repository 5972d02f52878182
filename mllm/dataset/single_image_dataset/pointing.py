"""Datasets of questions about a box or a point: PointQA and Visual7W."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import (
    GroundingDataset,
    answer_turn,
    four_numbers,
    numbers_in,
    plain_text,
)
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS
from mllm.structures import BOX, POINT, Mark, Sample

MARK_KINDS = ("b", "p", "bp")
"""Kinds of marks in a question: a box, a point, or one of both at random."""
_MARKS = ("bbox", "point")
"""Fields of the mark of a question."""


def parse_point(image: Image, numbers: Any, field: str = "point") -> Mark:
    """Return the mark of a point x y in pixels; raises `DataError` if it is outside of its image."""
    x, y = numbers_in(numbers, 2, field)
    if not (0 <= x <= image.width and 0 <= y <= image.height):
        raise DataError(f"field '{field}' {[x, y]} is outside of its image of {image.width} x {image.height} pixels")
    return Mark(point=(x, y))


class _PointingDataset(GroundingDataset):
    """Base of datasets with questions about a box or a point; `version` selects its kind."""

    default_templates = templates.VQA
    versions: ClassVar[tuple[str, ...]] = MARK_KINDS
    required: ClassVar[tuple[str, ...]] = ("file_path", "question", "answer")

    def __init__(
        self,
        data_path: str,
        image_folder: str | None = None,
        version: str = "b",
        **options: Any,
    ) -> None:
        super().__init__(data_path, image_folder, **options)
        if version not in self.versions:
            raise ConfigError(f"{type(self).__name__} has no version '{version}'{hint(version, self.versions)}")
        self.version = version

    def draw_mark(self, row: dict[str, Any], image: Image, kind: str, rng: np.random.Generator) -> tuple[str, Mark]:
        """Return the placeholder and the mark of a row; for the kind 'bp' a box or a point at random."""
        kind = ("b", "p")[int(rng.integers(2))] if kind == "bp" else kind
        return (
            (BOX, Mark(box=self.parse_box(image, row["bbox"])))
            if kind == "b"
            else (POINT, parse_point(image, row["point"]))
        )

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a question about the largest lesion, with the field names of all datasets in this module."""
        (x1, y1, x2, y2), boxes = row["boxes"][0], row["boxes"]
        question = "What is this?"
        return {
            "file_path": row["image"],
            **dict.fromkeys(("question", "obj_question", "super_question", "general_question"), question),
            "answer": row["expression"],
            "bbox": boxes[0],
            "point": [(x1 + x2) / 2, (y1 + y2) / 2],
        }


@DATASETS.register_module()
class Point_QA_local(_PointingDataset):  # noqa: N801  (the name in Shikra's configs)
    """PointQA with local questions. Row: {"file_path", "question", "answer", "bbox", "point"}.

    `version` is b, p or bp.
    """

    optional = _MARKS

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["file_path"])
        placeholder, mark = self.draw_mark(row, image, self.version, rng)
        question = self.draw_template(rng, question=f"{plain_text(row['question'], 'question')} {placeholder}")
        answer = f"The answer is {plain_text(row['answer'], 'answer')}."
        return Sample([self.question_turn(question, [[0]]), answer_turn(answer)], [image], marks=[mark])


@DATASETS.register_module()
class Point_QA_twice(_PointingDataset):  # noqa: N801  (the name in Shikra's configs)
    """PointQA with questions about all objects of a class.

    Row: {"file_path", "answer", "bbox", "point", "obj_question", "super_question", "general_question"}.

    `version` consists of the question (oq: obj_question, sq: super_question, gq: general_question) and the kind of
    mark: `gq-bp`.
    """

    QUESTIONS = {"oq": "obj_question", "sq": "super_question", "gq": "general_question"}
    versions = tuple(f"{question}-{kind}" for question in QUESTIONS for kind in MARK_KINDS)
    required = ("file_path", "answer")
    optional = (*QUESTIONS.values(), *_MARKS)

    def __init__(self, data_path: str, image_folder: str | None = None, version: str = "oq-b", **options: Any) -> None:
        super().__init__(data_path, image_folder, version, **options)

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        question_key, kind = self.version.split("-")
        image, field = self.read_image(row["file_path"]), self.QUESTIONS[question_key]
        text, marks, groups = plain_text(row[field], field), list[Mark](), list[Sequence[int]]()
        if question_key != "oq":  # an obj_question names the object and needs no mark
            placeholder, mark = self.draw_mark(row, image, kind, rng)
            text, marks, groups = f"{text} {placeholder}", [mark], [[0]]
        question = self.question_turn(self.draw_template(rng, question=text), groups)
        return Sample(
            [question, answer_turn(f"The answer is {plain_text(row['answer'], 'answer')}.")], [image], marks=marks
        )


@DATASETS.register_module()
class V7W_POINT(_PointingDataset):  # noqa: N801  (the name in Shikra's configs)
    """Visual7W pointing: the choice of one of several boxes or points.

    Row: {"file_path", "question", "candidates", "answer", "point"}. `candidates` are boxes; `answer` is one of them or
    its index from 0. With `version` p the points in `point` replace the boxes.
    """

    versions = ("b", "p")
    required = ("file_path", "question", "candidates", "answer")
    optional = ("point",)

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["file_path"])
        if not isinstance(row["candidates"], list):
            raise DataError("field 'candidates' must be a list of boxes")
        candidates = [four_numbers(box, f"candidates[{number}]") for number, box in enumerate(row["candidates"])]
        answer = row["answer"]
        if not isinstance(answer, int):
            box = four_numbers(answer, "answer")
            if box not in candidates:
                raise DataError("field 'answer' is not one of the 'candidates'")
            answer = candidates.index(box)
        if not 0 <= answer < len(candidates):
            raise DataError(f"field 'answer' is {answer}, but there are {len(candidates)} candidates (from 0)")
        if self.version == "b":
            placeholder = BOX
            marks = [Mark(box=self.parse_box(image, box, "candidates")) for box in candidates]
        else:
            placeholder = POINT
            marks = [parse_point(image, point) for point in row["point"]]
        text = f"{plain_text(row['question'], 'question')} Candidates: {' '.join([placeholder] * len(marks))}"
        question = self.question_turn(
            self.draw_template(rng, question=text), [[number] for number in range(len(marks))]
        )
        return Sample([question, answer_turn(f"Answer: {placeholder} .", [[answer]])], [image], marks=marks)

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a question about the largest lesion."""
        points = [[(x1 + x2) / 2, (y1 + y2) / 2] for x1, y1, x2, y2 in row["boxes"]]
        question = "Which lesion is the largest?"
        fields = {"candidates": row["boxes"], "answer": row["boxes"][0], "point": points}
        return {"file_path": row["image"], "question": question, **fields}
