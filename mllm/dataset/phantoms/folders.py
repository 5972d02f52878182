"""Writers of miniatures in folders: classes, and images with their masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mllm.dataset.phantoms.marked import marked_phantom
from mllm.dataset.phantoms.writers import save_image

SIZE = 224
"""Width and height of an image in pixels."""


def write_class_folders(folder: Path, rows: int) -> dict[str, Any]:
    """Write `rows` phantoms into folders of the two classes `one lesion` and `several lesions`; return the options."""
    for number in range(rows):
        phantom = marked_phantom(np.random.default_rng((number, *folder.name.encode())), number, SIZE)
        label = "one lesion" if len(phantom.boxes) == 1 else "several lesions"
        save_image(phantom.image, folder / "classes" / label / f"{number:03}.png")
    return {"data_path": str(folder / "classes")}


def write_mask_folders(folder: Path, rows: int) -> dict[str, Any]:
    """Write `rows` phantoms and the masks of their lesions; return the options that read them."""
    for number in range(rows):
        phantom = marked_phantom(np.random.default_rng((number, *folder.name.encode())), number, SIZE)
        mask = np.any(phantom.masks, axis=0)
        save_image(phantom.image, folder / "images" / f"{number:03}.png")
        save_image(Image.fromarray(mask.astype(np.uint8) * 255), folder / "masks" / f"{number:03}.png")
    return {"data_path": str(folder / "images"), "mask_folder": str(folder / "masks"), "labels": "the lesions"}
