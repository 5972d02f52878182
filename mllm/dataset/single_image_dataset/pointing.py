"""Questions that point at something, by a box or a point: PointQA and Visual7W."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answered, box_in, words
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS
from mllm.structures import BOX, POINT, Mark, Sample

PLACES = ("b", "p", "bp")
"""Pointing by a box, by a point, or by one of the two, drawn."""


def point_in(image: Image, numbers: Any, field: str = "point") -> Mark:
    """A point x y in pixels of its image; raises `DataError` where it lies outside."""
    try:
        x, y = (float(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise DataError(f"field '{field}' must hold two numbers, not {numbers!r}") from error
    if not (0 <= x <= image.width and 0 <= y <= image.height):
        raise DataError(f"field '{field}' {[x, y]} lies outside of its image of {image.width} x {image.height} pixels")
    return Mark(point=(x, y))


class _PointingDataset(GroundingDataset):
    """A question about a place, named as `version` says."""

    sentences = templates.VQA
    versions: ClassVar[tuple[str, ...]] = PLACES
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
            raise ConfigError(f"{type(self).__name__} knows no version '{version}'{hint(version, self.versions)}")
        self.version = version

    def place_of(self, row: dict[str, Any], image: Image, kind: str, rng: np.random.Generator) -> tuple[str, Mark]:
        """The placeholder of a kind ('b', 'p', or 'bp': drawn) and the mark of the row."""
        kind = ("b", "p")[int(rng.integers(2))] if kind == "bp" else kind
        return (BOX, Mark(box=box_in(image, row["bbox"]))) if kind == "b" else (POINT, point_in(image, row["point"]))

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """What is at the largest lesion, under every name that these datasets use."""
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
    """PointQA, local questions. Row: {"file_path", "question", "answer", "bbox", "point"}; `version` b, p or bp."""

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["file_path"])
        placeholder, mark = self.place_of(row, image, self.version, rng)
        question = self.sentence(rng, question=f"{words(row['question'], 'question')} {placeholder}")
        answer = f"The answer is {words(row['answer'], 'answer')}."
        return Sample([self.asked(question, [[0]]), answered(answer)], [image], marks=[mark])


@DATASETS.register_module()
class Point_QA_twice(_PointingDataset):  # noqa: N801  (the name in Shikra's configs)
    """PointQA, questions about all of a kind. Row: {"file_path", "answer", "bbox", "point", the questions}.

    `version` is the question (oq: obj_question, sq: super_question, gq: general_question) and the place: `gq-bp`.
    """

    QUESTIONS = {"oq": "obj_question", "sq": "super_question", "gq": "general_question"}
    versions = tuple(f"{question}-{place}" for question in QUESTIONS for place in PLACES)
    required = ("file_path", "answer")

    def __init__(self, data_path: str, image_folder: str | None = None, version: str = "oq-b", **options: Any) -> None:
        super().__init__(data_path, image_folder, version, **options)

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        which, place = self.version.split("-")
        image, field = self.read_image(row["file_path"]), self.QUESTIONS[which]
        asked, marks, places = words(row[field], field), list[Mark](), list[Sequence[int]]()
        if which != "oq":  # the object's own name needs no place
            placeholder, mark = self.place_of(row, image, place, rng)
            asked, marks, places = f"{asked} {placeholder}", [mark], [[0]]
        question = self.asked(self.sentence(rng, question=asked), places)
        return Sample([question, answered(f"The answer is {words(row['answer'], 'answer')}.")], [image], marks=marks)


@DATASETS.register_module()
class V7W_POINT(_PointingDataset):  # noqa: N801  (the name in Shikra's configs)
    """Visual7W: which of some places? Row: {"file_path", "question", "candidates", "answer", "point"}.

    `candidates` are boxes and `answer` is one of them, or its number from 0; with `version` p the places are `point`s.
    """

    versions = ("b", "p")
    required = ("file_path", "question", "candidates", "answer")

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["file_path"])
        candidates = [[float(number) for number in box] for box in row["candidates"]]
        answer = row["answer"]
        if not isinstance(answer, int):
            wanted = [float(number) for number in answer]
            if wanted not in candidates:
                raise DataError("field 'answer' is none of the 'candidates'")
            answer = candidates.index(wanted)
        if not 0 <= answer < len(candidates):
            raise DataError(f"field 'answer' is {answer}, and there are {len(candidates)} candidates (from 0)")
        if self.version == "b":
            placeholder = BOX
            marks = [Mark(box=box_in(image, box, "candidates")) for box in candidates]
        else:
            placeholder = POINT
            marks = [point_in(image, point) for point in row["point"]]
        asked = f"{words(row['question'], 'question')} Candidates: {' '.join([placeholder] * len(marks))}"
        question = self.asked(self.sentence(rng, question=asked), [[number] for number in range(len(marks))])
        return Sample([question, answered(f"Answer: {placeholder} .", [[answer]])], [image], marks=marks)

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Which lesion is the largest?"""
        points = [[(x1 + x2) / 2, (y1 + y2) / 2] for x1, y1, x2, y2 in row["boxes"]]
        question = "Which lesion is the largest?"
        places = {"candidates": row["boxes"], "answer": row["boxes"][0], "point": points}
        return {"file_path": row["image"], "question": question, **places}
