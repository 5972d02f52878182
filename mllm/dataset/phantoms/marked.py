"""Phantoms with lesions, and writer of the miniatures of grounding datasets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mllm.dataset.phantoms.phantom import MODALITIES, Phantom, draw
from mllm.dataset.phantoms.writers import save_image, write_pickle
from mllm.files import replaced_file

_SIZE = 224
"""Width and height of an image in pixels."""


def marked_phantom(rng: np.random.Generator, number: int, size: int = _SIZE, max_lesions: int = 3) -> Phantom:
    """Return a phantom with one to `max_lesions` lesions; `number` selects the modality."""
    modality = MODALITIES[number % len(MODALITIES)]
    while True:
        phantom = draw(modality, rng, size, int(rng.integers(1, max_lesions + 1)))
        if phantom.boxes:
            return phantom


def write_marked_miniature(
    folder: Path, rows: int, row_of: Callable[[dict[str, Any]], dict[str, Any]], suffix: str = ".png"
) -> dict[str, Any]:
    """Write `rows` phantoms and `rows.jsonl` into `folder`; return the arguments that read them.

    `row_of` returns the row of a dataset for a dict with `image`, `expression`, `boxes` (x1 y1 x2 y2 in pixels, largest
    lesion first), `polygons` (one per lesion), `width`, `height` and `number`. The images depend on the folder name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(rows):
        phantom = marked_phantom(np.random.default_rng((number, *folder.name.encode())), number)
        name = f"{number:03}{suffix}"
        save_image(phantom.image, folder / name)
        row = {
            "image": name,
            "expression": f"the largest {phantom.lesion}",
            "boxes": [[float(number) for number in box] for box in phantom.boxes],
            "polygons": [outline(mask) for mask in phantom.masks],
            "width": _SIZE,
            "height": _SIZE,
            "number": number,
        }
        lines.append(json.dumps(row_of(row)))
    with replaced_file(folder / "rows.jsonl") as file:
        file.write("\n".join(lines) + "\n")
    return {"data_path": str(folder / "rows.jsonl"), "image_folder": str(folder)}


def write_refer_miniature(folder: Path, rows: int) -> dict[str, Any]:
    """Write `rows` phantoms in the original format of RefCOCO; return the arguments that read them."""
    entries: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> dict[str, Any]:
        entries.append(row)
        return row

    written = write_marked_miniature(folder, rows, keep)
    references, annotations, images = [], [], []
    for number, row in enumerate(entries):
        x1, y1, x2, y2 = row["boxes"][0]
        image = {"id": number, "file_name": row["image"], "width": row["width"], "height": row["height"]}
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [row["polygons"][0]], "category_id": 1}
        reference = {"ref_id": number, "ann_id": number, "image_id": number, "category_id": 1, "split": "train"}
        sentence = {"sent_id": number, "sent": row["expression"], "raw": row["expression"]}
        images.append(image)
        annotations.append({"id": number, "image_id": number, **box})
        references.append({**reference, "file_name": row["image"], "sent_ids": [number], "sentences": [sentence]})
    with replaced_file(folder / "instances.json") as file:
        json.dump({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "lesion"}]}, file)
    path = write_pickle(folder / "refs(unc).p", references)
    return {**written, "data_path": str(path), "split": "train"}


def outline(mask: np.ndarray) -> list[float]:
    """Return a polygon x y x y ... in pixels around a mask [H, W] whose rows have no gaps."""
    left, right = [], []
    for y in np.flatnonzero(mask.any(axis=1)):
        columns = np.flatnonzero(mask[y])
        left += [(float(columns[0]), float(y)), (float(columns[0]), float(y + 1))]
        right += [(float(columns[-1] + 1), float(y)), (float(columns[-1] + 1), float(y + 1))]
    return [value for point in (*left, *reversed(right)) for value in point]
