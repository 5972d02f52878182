"""Datasets of questions whose answers include reasons: GPT4Gen and GQA."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.caption import parse_phrases
from mllm.dataset.single_image_dataset.grounding import (
    GroundingDataset,
    answer_turn,
    parse_box,
    plain_text,
)
from mllm.dataset.tables.text_files import read_text
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS
from mllm.structures import BOX, POINT, Mark, Sample

REASON_TEMPLATES = {
    "a": templates.VQA,
    "l": templates.VQA,
    "bl": templates.VQA,
    "c": templates.VQA_REASON,
    "s": templates.VQA_REASON,
    "bc": templates.VQA_REASON_BOXES,
    "bs": templates.VQA_REASON_BOXES,
}
"""Kind of answer -> question templates. a: answer; c: reasons; s: program; l: full sentence; b: with boxes."""


def checked_version(version: str, known: Sequence[str], name: str) -> str:
    """Return `version`; raises `ConfigError` if it is unknown."""
    if version not in known:
        raise ConfigError(f"{name} has no version '{version}'{hint(version, known)}")
    return version


def scene_graph(path: str | Path, name: str) -> dict[str, Any]:
    """Load a json file of scenes by image; raises `ConfigError` if it cannot be read."""
    try:
        graph: dict[str, Any] = json.loads(read_text(Path(path).expanduser()))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ConfigError(f"{name}: scene graph {path} cannot be read: {error}") from error
    return graph


@DATASETS.register_module()
class GPT4Gen(GroundingDataset):
    """Generated questions and reasons with boxes (Shikra-RD).

    Row: {"img_path", "boxes", "question", "question_boxes_seq", "answer", "cot_with_ans", "answer_boxes_seq"}, phrases
    enclosed in `<ph_st>` and `<ph_ed>`. `version`: a (answer), c (reasons), bc (reasons with boxes).
    """

    required = ("img_path", "question", "cot_with_ans")
    optional = ("answer", "question_boxes_seq", "answer_boxes_seq", "boxes")
    VERSIONS = ("a", "c", "bc")

    def __init__(self, data_path: str, image_folder: str | None = None, version: str = "bc") -> None:
        super().__init__(data_path, image_folder)
        self.version = checked_version(version, self.VERSIONS, "GPT4Gen")
        self.templates = REASON_TEMPLATES[version]

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        text, groups = parse_phrases(row["question"], row.get("question_boxes_seq", []), "question")
        if self.version == "a":
            answer = answer_turn(f"The answer is {plain_text(row['answer'], 'answer')}.")
        else:
            reason, reason_groups = parse_phrases(row["cot_with_ans"], row.get("answer_boxes_seq", []), "cot_with_ans")
            with_boxes = self.version == "bc"
            answer = answer_turn(reason, reason_groups) if with_boxes else answer_turn(reason.replace(f" {BOX}", ""))
        question = self.question_turn(self.draw_template(rng, question=text), groups)
        return Sample([question, answer], [image], marks=self.parse_boxes(image, row.get("boxes", [])))

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a question about the number of lesions, with a reason."""
        count, every = str(len(row["boxes"])), [list(range(len(row["boxes"])))]
        return {
            "img_path": row["image"],
            "boxes": row["boxes"],
            "question": "How many <ph_st>lesions<ph_ed> are there?",
            "question_boxes_seq": every,
            "answer": count,
            "cot_with_ans": f"I see <ph_st>lesions<ph_ed>. The answer is {count}.",
            "answer_boxes_seq": every,
        }


@DATASETS.register_module()
class GQADataset(GroundingDataset):
    """GQA with the objects of its scene graphs.

    Row: {"imageId", "question", "answer", "fullAnswer", "semanticStr", "annotations", "cot": {"boxes", "value",
    "seq"}}; the image is `{imageId}.jpg`. `version` consists of the kind of question (q: text; qb:
    with boxes of its objects; qbp: with boxes or points) and the kind of answer (a, c, bc, s, bs, l, bl): `qb-bc`.
    Boxes come from `scene_graph_file`.
    """

    required = ("imageId", "question", "answer")
    optional = ("fullAnswer", "semanticStr", "annotations", "cot")
    image_suffix = ".jpg"
    VERSIONS = tuple(f"{question}-{answer}" for question in ("q", "qb", "qbp") for answer in REASON_TEMPLATES)

    def __init__(
        self,
        data_path: str,
        image_folder: str | None = None,
        scene_graph_file: str | None = None,
        version: str = "q-a",
    ) -> None:
        super().__init__(data_path, image_folder)
        self.question_kind, self.answer_kind = checked_version(version, self.VERSIONS, "GQADataset").split("-")
        self.templates = REASON_TEMPLATES[self.answer_kind]
        if scene_graph_file is None and (self.question_kind != "q" or self.answer_kind in ("bs", "bl")):
            raise ConfigError(f"GQADataset: version '{version}' needs the objects of the scenes: add scene_graph_file")
        self.graph = {} if scene_graph_file is None else scene_graph(scene_graph_file, "GQADataset")

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image, marks = self.read_image(f"{row['imageId']}.jpg"), list[Mark]()
        text, groups = plain_text(row["question"], "question"), list[list[int]]()
        if self.question_kind != "q":
            points = self.question_kind == "qbp" and bool(rng.integers(2))
            text, groups = self._insert_marks(row, "question", text, image, marks, points)
        answer, answer_groups = self._answer(row, image, marks)
        question = self.question_turn(self.draw_template(rng, question=text), groups)
        return Sample([question, answer_turn(answer, answer_groups)], [image], marks=marks)

    def _answer(self, row: dict[str, Any], image: Image, marks: list[Mark]) -> tuple[str, list[list[int]]]:
        """Return the answer of the version and the mark indices of its boxes; appends to `marks`."""
        short = f"The answer is {plain_text(row['answer'], 'answer')}."
        if self.answer_kind == "a":
            return short, []
        if self.answer_kind in ("l", "bl"):
            full = plain_text(row["fullAnswer"], "fullAnswer")
            return (
                (full, [])
                if self.answer_kind == "l"
                else self._insert_marks(row, "fullAnswer", full, image, marks, False)
            )
        if self.answer_kind in ("s", "bs"):
            return self._program(row, image, marks, short)
        cot = row["cot"]
        text, groups = parse_phrases(cot["value"], cot.get("seq", []), "cot")
        if self.answer_kind == "c":
            return f"{text.replace(f' {BOX}', '')} {short}", []
        first = len(marks)
        marks += self.parse_boxes(image, cot.get("boxes", []), "cot.boxes")
        return f"{text} {short}", [[first + index for index in group] for group in groups]

    def _program(self, row: dict[str, Any], image: Image, marks: list[Mark], short: str) -> tuple[str, list[list[int]]]:
        """Return the program in words; object numbers are removed, or replaced by boxes."""
        groups: list[list[int]] = []

        def replace_numbers(match: re.Match[str]) -> str:
            if self.answer_kind == "s" or not match[1].strip("- "):
                return ""
            group = []
            for number in match[1].split(","):
                group.append(len(marks))
                marks.append(self._object(row, number.strip(), image))
            groups.append(group)
            return BOX

        text = re.sub(r"\(([\d,\s-]*)\)", replace_numbers, plain_text(row["semanticStr"], "semanticStr"))
        return f"{' '.join(text.split())}. {short}", groups

    def _insert_marks(
        self, row: dict[str, Any], field: str, text: str, image: Image, marks: list[Mark], points: bool
    ) -> tuple[str, list[list[int]]]:
        """Return the text with a placeholder after each annotated word, and the mark indices; appends to `marks`."""
        parts, groups = text.split(" "), list[list[int]]()
        annotated = (row.get("annotations") or {}).get(field) or {}
        spans = {
            int(str(span).rpartition(":")[2]) - (":" in str(span)): str(index) for span, index in annotated.items()
        }
        for position in sorted(spans):
            if not 0 <= position < len(parts):
                raise DataError(f"field 'annotations' names word {position} of '{field}', which has {len(parts)}")
            mark = self._object(row, spans[position], image)
            if points and mark.box is not None:
                x1, y1, x2, y2 = mark.box
                mark = Mark(point=((x1 + x2) / 2, (y1 + y2) / 2))
            groups.append([len(marks)])
            marks.append(mark)
            # The placeholder precedes the punctuation mark that ends the word.
            word = re.match(r"(.*?)([.,?!]*)$", parts[position])
            assert word is not None
            parts[position] = f"{word[1]} {POINT if points else BOX}{word[2]}"
        return " ".join(parts), groups

    def _object(self, row: dict[str, Any], number: str, image: Image) -> Mark:
        """Return the box of an object in the scene of the image."""
        scene = self.graph.get(str(row["imageId"]), {}).get("objects", {})
        if number not in scene:
            raise DataError(f"the scene graph has no object {number} in image {row['imageId']}")
        item = scene[number]
        numbers = item["x"], item["y"], item["w"], item["h"]
        return Mark(box=parse_box(image.size, numbers, "scene graph", "xywh", has_option=False))

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a question about the number of lesions, with boxes in the reasons."""
        count = str(len(row["boxes"]))
        cot = {"value": "I see <ph_st>lesions<ph_ed>.", "boxes": row["boxes"], "seq": [list(range(len(row["boxes"])))]}
        return {
            "imageId": row["image"].removesuffix(".jpg"),
            "question": "How many lesions are there?",
            "answer": count,
            "fullAnswer": f"There are {count} lesions.",
            "semanticStr": "select: lesion (-)->count: lesions",
            "annotations": {},
            "cot": cot,
        }
