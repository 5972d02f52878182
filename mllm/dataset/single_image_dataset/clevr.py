"""CLEVR: questions about geometric solids with the programs that answer them (arXiv:1612.06890)."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answer_turn, plain_text
from mllm.dataset.single_image_dataset.pointing import parse_point
from mllm.dataset.single_image_dataset.reasoning import checked_version, scene_graph
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS
from mllm.structures import POINT, Mark, Sample

PROPERTIES = ("size", "color", "material", "shape")


@DATASETS.register_module()
class ClevrDataset(GroundingDataset):
    """CLEVR. Row: {"image_filename", "image_index", "question", "answer", "program"}.

    `version`: q-a (answer), q-s (the steps of the program in words), q-bs (q-s with points on the objects that each
    step returns; needs `scene_graph_file`; CLEVR has no boxes).
    """

    required = ("image_filename", "question", "answer")
    optional = ("program", "image_index")
    VERSIONS = ("q-a", "q-s", "q-bs")

    def __init__(
        self,
        data_path: str,
        image_folder: str | None = None,
        scene_graph_file: str | None = None,
        version: str = "q-a",
    ) -> None:
        super().__init__(data_path, image_folder)
        self.answer_kind = checked_version(version, self.VERSIONS, "ClevrDataset").removeprefix("q-")
        kinds = {"a": templates.VQA, "s": templates.VQA_REASON, "bs": templates.VQA_REASON_POINTS}
        self.templates = kinds[self.answer_kind]
        if self.answer_kind == "bs" and scene_graph_file is None:
            raise ConfigError("ClevrDataset: version 'q-bs' needs the objects of the scenes: add scene_graph_file")
        scenes = [] if scene_graph_file is None else scene_graph(scene_graph_file, "ClevrDataset").get("scenes", [])
        self.scenes = {int(scene["image_index"]): scene for scene in scenes}

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["image_filename"])
        answer, marks, groups = f"The answer is {plain_text(row['answer'], 'answer')}.", list[Mark](), list[list[int]]()
        if self.answer_kind != "a":
            steps = row["program"]
            results = execute(steps, self._scene(row)) if self.answer_kind == "bs" else [None] * len(steps)
            phrases = []
            for step, objects in zip(steps, results, strict=True):
                phrases.append(_step_text(step))
                if objects:
                    groups.append(list(range(len(marks), len(marks) + len(objects))))
                    marks += [parse_point(image, item["pixel_coords"][:2], "pixel_coords") for item in objects]
                    phrases[-1] += f" {POINT}"
            answer = f"{', '.join(phrases)}. {answer}"
        question = self.question_turn(self.draw_template(rng, question=plain_text(row["question"], "question")))
        return Sample([question, answer_turn(answer, groups)], [image], marks=marks)

    def _scene(self, row: dict[str, Any]) -> dict[str, Any]:
        index = row["image_index"]
        if index not in self.scenes:
            raise DataError(f"the scene graph has no image_index {index}")
        return self.scenes[index]

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a question about the number of lesions."""
        return {
            "image_filename": row["image"],
            "image_index": row["number"],
            "question": "How many things are there?",
            "answer": str(len(row["boxes"])),
            "program": [
                {"function": "scene", "inputs": [], "value_inputs": []},
                {"function": "count", "inputs": [0], "value_inputs": []},
            ],
        }


def _step_text(step: dict[str, Any]) -> str:
    """Return a step of a program in words: `filter color red`."""
    return " ".join([_function(step).replace("_", " "), *map(str, _values(step))])


def _function(step: dict[str, Any]) -> str:
    return str(step.get("function") or step["type"])


def _values(step: dict[str, Any]) -> list[Any]:
    return list(step.get("value_inputs") or step.get("side_inputs") or [])


def execute(program: list[dict[str, Any]], scene: dict[str, Any]) -> list[list[dict[str, Any]] | None]:
    """Return the objects that each step of a program returns; None for a step without objects (a count, a color)."""
    results: list[list[dict[str, Any]] | None] = []
    objects: list[dict[str, Any]] = scene["objects"]
    for step in program:
        name, values = _function(step), _values(step)
        inputs = [results[index] or [] for index in step["inputs"]]
        head, _, attribute = name.partition("_")
        if name == "scene":
            results.append(objects)
        elif head == "filter":
            results.append([item for item in inputs[0] if item[attribute] == values[0]])
        elif name == "unique":
            results.append(inputs[0])
        elif name == "relate":
            related = scene["relationships"][values[0]][objects.index(inputs[0][0])] if inputs[0] else []
            results.append([objects[index] for index in related])
        elif head == "same" and attribute in PROPERTIES:
            first = inputs[0][0] if inputs[0] else None
            same = [item for item in objects if first and item is not first and item[attribute] == first[attribute]]
            results.append(same)
        elif name in ("intersect", "union"):
            left, right = inputs
            both = [item for item in objects if item in left and item in right]
            either = [item for item in objects if item in left or item in right]
            results.append(both if name == "intersect" else either)
        else:
            results.append(None)
    return results
