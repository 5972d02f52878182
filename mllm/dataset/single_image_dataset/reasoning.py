"""Questions whose answers come with their reasons: GPT4Gen and GQA."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.caption import grounded
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answered, box_in, boxes_in, words
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
"""Kind of answer -> how one asks for it. a: answer; c: reasons; s: the program; l: a sentence; b: with boxes."""


def checked_version(version: str, known: Sequence[str], name: str) -> str:
    """`version`, if it is known; raises `ConfigError` otherwise."""
    if version not in known:
        raise ConfigError(f"{name} knows no version '{version}'{hint(version, known)}")
    return version


def scene_graph(path: str | Path, name: str) -> dict[str, Any]:
    """A json file of scenes by their image; raises `ConfigError` where it cannot be read."""
    try:
        graph: dict[str, Any] = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: scene graph {path} cannot be read: {error}") from error
    return graph


@DATASETS.register_module()
class GPT4Gen(GroundingDataset):
    """Generated questions and reasons with boxes (Shikra-RD).

    Row: {"img_path", "boxes", "question", "question_boxes_seq", "answer", "cot_with_ans", "answer_boxes_seq"}, phrases
    bracketed by `<ph_st>` and `<ph_ed>`. `version`: a (answer), c (reasons), bc (reasons with boxes).
    """

    required = ("img_path", "question", "cot_with_ans")
    VERSIONS = ("a", "c", "bc")

    def __init__(self, data_path: str, image_folder: str | None = None, version: str = "bc") -> None:
        super().__init__(data_path, image_folder)
        self.version = checked_version(version, self.VERSIONS, "GPT4Gen")
        self.templates = REASON_TEMPLATES[version]

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        asked, places = grounded(row["question"], row.get("question_boxes_seq", []), "question")
        if self.version == "a":
            answer = answered(f"The answer is {words(row['answer'], 'answer')}.")
        else:
            text, named = grounded(row["cot_with_ans"], row.get("answer_boxes_seq", []), "cot_with_ans")
            answer = answered(text, named) if self.version == "bc" else answered(text.replace(f" {BOX}", ""))
        question = self.asked(self.sentence(rng, question=asked), places)
        return Sample([question, answer], [image], marks=boxes_in(image, row.get("boxes", [])))

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """How many lesions there are, with the reason."""
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
    "seq"}}; the image is `{imageId}.jpg`. `version` is what is asked (q; qb: its objects with boxes; qbp: with boxes or
    points) and what is answered (a, c, bc, s, bs, l, bl): `qb-bc`. Boxes come from `scene_graph_file`.
    """

    required = ("imageId", "question", "answer")
    image_suffix = ".jpg"
    VERSIONS = tuple(f"{asked}-{given}" for asked in ("q", "qb", "qbp") for given in REASON_TEMPLATES)

    def __init__(
        self,
        data_path: str,
        image_folder: str | None = None,
        scene_graph_file: str | None = None,
        version: str = "q-a",
    ) -> None:
        super().__init__(data_path, image_folder)
        self.asks, self.gives = checked_version(version, self.VERSIONS, "GQADataset").split("-")
        self.templates = REASON_TEMPLATES[self.gives]
        if scene_graph_file is None and (self.asks != "q" or self.gives in ("bs", "bl")):
            raise ConfigError(f"GQADataset: version '{version}' names objects of scenes: give scene_graph_file")
        self.graph = {} if scene_graph_file is None else scene_graph(scene_graph_file, "GQADataset")

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image, marks = self.read_image(f"{row['imageId']}.jpg"), list[Mark]()
        asked, places = words(row["question"], "question"), list[list[int]]()
        if self.asks != "q":
            points = self.asks == "qbp" and bool(rng.integers(2))
            asked, places = self._named(row, "question", asked, image, marks, points)
        text, named = self._answer(row, image, marks)
        question = self.asked(self.sentence(rng, question=asked), places)
        return Sample([question, answered(text, named)], [image], marks=marks)

    def _answer(self, row: dict[str, Any], image: Image, marks: list[Mark]) -> tuple[str, list[list[int]]]:
        """The answer as the version wants it, and the marks of its boxes; appends to `marks`."""
        short = f"The answer is {words(row['answer'], 'answer')}."
        if self.gives == "a":
            return short, []
        if self.gives in ("l", "bl"):
            full = words(row["fullAnswer"], "fullAnswer")
            return (full, []) if self.gives == "l" else self._named(row, "fullAnswer", full, image, marks, False)
        if self.gives in ("s", "bs"):
            return self._program(row, image, marks, short)
        cot = row["cot"]
        text, sequence = str(cot["value"]), cot.get("seq", [])
        text, named = grounded(text, sequence, "cot")
        if self.gives == "c":
            return f"{text.replace(f' {BOX}', '')} {short}", []
        first = len(marks)
        marks += boxes_in(image, cot.get("boxes", []), "cot.boxes")
        return f"{text} {short}", [[first + index for index in group] for group in named]

    def _program(self, row: dict[str, Any], image: Image, marks: list[Mark], short: str) -> tuple[str, list[list[int]]]:
        """GQA's program in words; its objects' numbers are left out, or replaced by their boxes."""
        places: list[list[int]] = []

        def replaced(match: re.Match[str]) -> str:
            if self.gives == "s" or not match[1].strip("- "):
                return ""
            group = []
            for number in match[1].split(","):
                group.append(len(marks))
                marks.append(self._object(row, number.strip(), image))
            places.append(group)
            return BOX

        text = re.sub(r"\(([\d,\s-]*)\)", replaced, words(row["semanticStr"], "semanticStr"))
        return f"{' '.join(text.split())}. {short}", places

    def _named(
        self, row: dict[str, Any], field: str, text: str, image: Image, marks: list[Mark], points: bool
    ) -> tuple[str, list[list[int]]]:
        """A text with the box or point of each annotated word behind it; appends to `marks`."""
        parts, places = text.split(" "), list[list[int]]()
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
            places.append([len(marks)])
            marks.append(mark)
            # The place stands before the sign that ends the word.
            word = re.match(r"(.*?)([.,?!]*)$", parts[position])
            assert word is not None
            parts[position] = f"{word[1]} {POINT if points else BOX}{word[2]}"
        return " ".join(parts), places

    def _object(self, row: dict[str, Any], number: str, image: Image) -> Mark:
        """The box of an object of the image's scene."""
        scene = self.graph.get(str(row["imageId"]), {}).get("objects", {})
        if number not in scene:
            raise DataError(f"the scene graph has no object {number} in image {row['imageId']}")
        found = scene[number]
        return Mark(box=box_in(image, (found["x"], found["y"], found["w"], found["h"]), "scene graph", is_xywh=True))

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """How many lesions there are, with boxes in the reasons."""
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
