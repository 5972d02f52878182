"""Writer of a miniature of FLARE 2025, task 5, with the published folders, files and fields of its 19 datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mllm.dataset.phantoms.chest import first_number, write_json, xray
from mllm.dataset.phantoms.writers import save_image

_TASKS = {
    "Retinography/retino": "Classification",
    "Retinography/fundus": "Classification",
    "Ultrasound/BUSI": "classification",
    "Ultrasound/BUS-UCLM": "classification",
    "Ultrasound/BUSI-det": "detection",
    "Ultrasound/BUS-UCLM-det": "detection",
    "Ultrasound/iugc": "Classification, Detection, Regression",
    "Xray/boneresorption": "regression",
    "Xray/dental": "Classification",
    "Xray/periapical": "Multi-label Classification",
    "Xray/IU_XRay": "Report_Generation",
    "Xray/chestdr": "Multi-label Classification",
    "Clinical/neojaundice": "Classification",
    "Microscopy/chromosome": "instance_detection",
    "Microscopy/neurips22cell": "Counting",
    "Microscopy/bone_marrow": "classification",
    "Endoscopy/endo": "Classification",
    "Dermatology/bcn20000": "Classification",
    "Mammography/CMMD": "Classification",
}
"""Folder of a dataset -> `TaskType` as its file spells it."""


def write_flare(folder: Path, rows: int) -> dict[str, Any]:
    """Write about `rows` questions and return the options that read them.

    With less than 19 rows, datasets of all spellings of tasks come first; with more, each dataset has several rows.
    """
    root = folder / "organized_dataset"
    each = max(1, rows // len(_TASKS))
    first = {task: place for place, task in reversed(_TASKS.items())}
    places = [*first.values(), *(place for place in _TASKS if place not in first.values())]
    for position, place in enumerate(places[:rows]):
        task = _TASKS[place]
        name, entries = Path(place).name, []
        for number in range(each):
            phantom = xray(folder, 3 * each * position + number + 1)  # the first one has a lesion
            image = f"imagesTr/{name}_{first_number(folder) + number:05}.jpg"
            save_image(phantom.image, root / "training" / place / image)
            question, answer = _question(task, name, [list(box) for box in phantom.boxes])
            entry = {
                "TaskType": task,
                "Modality": place.partition("/")[0],
                "ImageName": [image] if name == "IU_XRay" else image,
                "Question": question,
                "Answer": answer,
                "Split": "train",
            }
            entries.append(entry)
        write_json(root / "training" / place / f"{name}_questions_train.json", entries)
    return {"data_path": str(root), "split": "training"}


def _question(task: str, name: str, boxes: list[list[int]]) -> tuple[str, Any]:
    """Return a question and its answer in the form of the task."""
    if task == "detection":
        return "Where is the lesion?", str(boxes[0] if boxes else [0, 0, 1, 1])
    if task == "instance_detection":
        return "Give the boxes of all chromosomes.", json.dumps({str(i): [box] for i, box in enumerate(boxes, start=1)})
    if task == "Counting":
        return "How many cells are there?", len(boxes)
    if task == "regression":
        return "What is the ratio of the bone loss?", 0.25
    if task == "Report_Generation":
        return "Describe the findings.", "The lungs are clear."
    if task.startswith("Multi-label"):
        return "Question: Which findings? Options: A: nodule, B: mass", "A;B" if name == "periapical" else "A,B"
    if name == "CMMD":
        return "What is shown? Options: benign, malignant", "benign"
    return "Question: What is shown? Options: A: a lesion, B: none, T: another", "A"
