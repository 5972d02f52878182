"""CLEVR: questions about simple solids, with the program that answers them (arXiv:1612.06890)."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answered, words
from mllm.dataset.single_image_dataset.pointing import point_in
from mllm.dataset.single_image_dataset.reasoning import checked_version, scene_graph
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS
from mllm.structures import POINT, Mark, Sample

PROPERTIES = ("size", "color", "material", "shape")


@DATASETS.register_module()
class ClevrDataset(GroundingDataset):
    """CLEVR. Row: {"image_filename", "image_index", "question", "answer", "program"}.

    `version`: q-a (answer), q-s (the program's steps in words), q-bs (the same with points on the objects that each
    step leaves, which need `scene_graph_file`; CLEVR has no boxes).
    """

    required = ("image_filename", "question", "answer")
    VERSIONS = ("q-a", "q-s", "q-bs")

    def __init__(
        self,
        data_path: str,
        image_folder: str | None = None,
        scene_graph_file: str | None = None,
        version: str = "q-a",
    ) -> None:
        super().__init__(data_path, image_folder)
        self.gives = checked_version(version, self.VERSIONS, "ClevrDataset").removeprefix("q-")
        kinds = {"a": templates.VQA, "s": templates.VQA_REASON, "bs": templates.VQA_REASON_POINTS}
        self.templates = kinds[self.gives]
        if self.gives == "bs" and scene_graph_file is None:
            raise ConfigError("ClevrDataset: version 'q-bs' points at objects of scenes: give scene_graph_file")
        scenes = [] if scene_graph_file is None else scene_graph(scene_graph_file, "ClevrDataset").get("scenes", [])
        self.scenes = {int(scene["image_index"]): scene for scene in scenes}

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["image_filename"])
        answer, marks, places = f"The answer is {words(row['answer'], 'answer')}.", list[Mark](), list[list[int]]()
        if self.gives != "a":
            steps = row["program"]
            left = execute(steps, self._scene(row)) if self.gives == "bs" else [None] * len(steps)
            said = []
            for step, objects in zip(steps, left, strict=True):
                said.append(_words_of(step))
                if objects:
                    places.append(list(range(len(marks), len(marks) + len(objects))))
                    marks += [point_in(image, found["pixel_coords"][:2], "pixel_coords") for found in objects]
                    said[-1] += f" {POINT}"
            answer = f"{', '.join(said)}. {answer}"
        question = self.asked(self.sentence(rng, question=words(row["question"], "question")))
        return Sample([question, answered(answer, places)], [image], marks=marks)

    def _scene(self, row: dict[str, Any]) -> dict[str, Any]:
        index = row["image_index"]
        if index not in self.scenes:
            raise DataError(f"the scene graph has no image_index {index}")
        return self.scenes[index]

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """How many lesions there are."""
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


def _words_of(step: dict[str, Any]) -> str:
    """A step of a program in words: `filter color red`."""
    return " ".join([_function(step).replace("_", " "), *map(str, _values(step))])


def _function(step: dict[str, Any]) -> str:
    return str(step.get("function") or step["type"])


def _values(step: dict[str, Any]) -> list[Any]:
    return list(step.get("value_inputs") or step.get("side_inputs") or [])


def execute(program: list[dict[str, Any]], scene: dict[str, Any]) -> list[list[dict[str, Any]] | None]:
    """The objects that each step of a program leaves; None for a step that gives no objects (a count, a color)."""
    results: list[list[dict[str, Any]] | None] = []
    everything: list[dict[str, Any]] = scene["objects"]
    for step in program:
        name, values = _function(step), _values(step)
        given = [results[index] or [] for index in step["inputs"]]
        head, _, what = name.partition("_")
        if name == "scene":
            results.append(everything)
        elif head == "filter":
            results.append([found for found in given[0] if found[what] == values[0]])
        elif name == "unique":
            results.append(given[0])
        elif name == "relate":
            seen = scene["relationships"][values[0]][everything.index(given[0][0])] if given[0] else []
            results.append([everything[index] for index in seen])
        elif head == "same" and what in PROPERTIES:
            one = given[0][0] if given[0] else None
            same = [found for found in everything if one and found is not one and found[what] == one[what]]
            results.append(same)
        elif name in ("intersect", "union"):
            first, second = given
            keep = [found for found in everything if (found in first and found in second)]
            either = [found for found in everything if (found in first or found in second)]
            results.append(keep if name == "intersect" else either)
        else:
            results.append(None)
    return results
