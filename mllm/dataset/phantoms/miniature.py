"""Writer of small generated datasets with which a config can be tried without its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm.dataset.phantoms.phantom import MODALITIES, draw
from mllm.dataset.phantoms.questions import draw_lesion_count, draw_question
from mllm.dataset.phantoms.writers import save_image
from mllm.files import replaced_file

_TASKS = ("classification", "counting", "regression", "report")
_SIZE = 224
"""Width and height of an image in pixels."""


def write_miniature(folder: Path, rows: int, required: Sequence[str] = ()) -> dict[str, Any]:
    """Write `rows` phantoms and `rows.jsonl` into `folder`; return `data_path` and `image_folder`.

    A row has `image`, `question`, `answer`, a `patient` that is unique to this folder, and a text for each other field
    in `required`. The images depend on the folder name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(rows):
        rng = np.random.default_rng((number, *folder.name.encode()))
        task, modality = _TASKS[number % len(_TASKS)], MODALITIES[number % len(MODALITIES)]
        phantom = draw(modality, rng, _SIZE, draw_lesion_count(task, rng))
        question = draw_question(phantom, task, rng)
        name = f"{number:03}.png"
        save_image(phantom.image, folder / name)
        row = {
            "image": name,
            "question": question.text,
            "answer": question.answer,
            "patient": f"{folder.name}-{number}",
        }
        extra = {"modality": modality} if "modality" in required else {}
        lines.append(json.dumps({**dict.fromkeys(required, "phantom"), **extra, **row}))
    with replaced_file(folder / "rows.jsonl") as file:
        file.write("\n".join(lines) + "\n")
    return {"data_path": str(folder / "rows.jsonl"), "image_folder": str(folder)}
