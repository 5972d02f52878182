"""Runs of the benchmark of blood cells: small copies of the images, configs of small models, training and figures."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

from mllm.files import replaced_folder, write_json

SIZE = (160, 120)
"""Width and height of the copies in pixels, a quarter of the originals: decoding would take a third of the time."""
LABELS = ("RBC", "WBC", "Platelets")
SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Name of each split here -> its name in BCCD."""
TASKS = ("counting", "detection_heads", "presence", "detection_text")
"""Names of the configs."""
CONFIGS = Path(__file__).with_name("bccd_configs")
LANGUAGE_WIDTH, PIXELS, PATCH = 96, 128, 16
TOWER_PIXELS, TOWER_PATCH = 96, 8


def prepare(data: Path, folder: Path) -> None:
    """Write small copies of the images with their boxes, and the configs of the two models, unless they exist."""
    if (folder / "models").is_dir():
        return
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pixels = [_write_split(data, official, folder / "data" / f"{name}.json") for name, official in SPLITS.items()]
    scale = [pixels[0].mean(axis=0).tolist(), pixels[0].std(axis=0).tolist()]
    with replaced_folder(folder / "models") as models:
        _write_models(models, *scale)


def _write_split(data: Path, split: str, path: Path) -> np.ndarray:
    """Write the images of a split and a COCO file, and return the pixels [P, 3] in [0, 1]."""
    from mllm.dataset.annotations.files import read_annotations

    annotations = read_annotations(data, split, "drop")
    assert annotations is not None, "the folder has the layout of Pascal VOC"
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    pixels = []
    for number, item in enumerate(annotations.images, start=1):
        with Image.open(data / "JPEGImages" / item.image) as image:
            small = image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
            x, y = SIZE[0] / image.width, SIZE[1] / image.height
        name = f"{Path(item.image).stem}.png"
        small.save(path.parent / name)
        pixels.append(np.asarray(small, np.float32).reshape(-1, 3) / 255)
        images.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for thing in item.objects:
            x1, y1, x2, y2 = thing.box
            box = [x1 * x, y1 * y, (x2 - x1) * x, (y2 - y1) * y]
            entry = {"image_id": number, "category_id": LABELS.index(thing.label) + 1, "iscrowd": 0}
            boxes.append({"id": len(boxes) + 1, **entry, "bbox": box, "area": box[2] * box[3]})
    categories = [{"id": number, "name": label} for number, label in enumerate(LABELS, start=1)]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return np.concatenate(pixels)


def _write_models(folder: Path, mean: list[float], std: list[float]) -> None:
    """Write the config and the processor of both models, without weights.

    Pixels are scaled by the mean and the standard deviation of the training split. With those of SigLIP the smears
    would have an eighth to a fifth of the contrast.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    from mllm.tiny.checkpoints import write_tiny

    width = LANGUAGE_WIDTH
    layers = dict(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2)
    tower = dict(layers, num_attention_heads=3)
    text = dict(layers, layer_types=["full_attention"] * 2)
    write_tiny("medsiglip", folder / "tower", vision=dict(tower, image_size=TOWER_PIXELS, patch_size=TOWER_PATCH))
    write_tiny("medgemma", folder / "language", text=text, vision=dict(tower, image_size=PIXELS, patch_size=PATCH))
    for name, kind in (("tower", AutoImageProcessor), ("language", AutoProcessor)):
        processor = kind.from_pretrained(folder / name)
        images = processor if name == "tower" else processor.image_processor
        images.image_mean, images.image_std = mean, std
        processor.save_pretrained(folder / name)
        for weights in (folder / name).glob("*.safetensors"):
            weights.unlink()


def train(task: str, seed: int, folder: Path, steps: int | None = None) -> Path:
    """Train and evaluate one model with `finetune` in `folder`, and return its run folder.

    A finished run is kept if it had the same number of updates, so that a trial is never part of the table.
    """
    from mllm.run.finetune import finetune

    run = folder / f"{task}-{seed}"
    finished = run / "cost.json"
    if finished.is_file() and json.loads(finished.read_text())["steps"] == steps:
        return run
    overrides = [f"training_args.output_dir={run}", f"training_args.seed={seed}", f"model_args.init_seed={seed}"]
    if steps is not None:
        overrides += [f"training_args.max_steps={steps}", "training_args.warmup_steps=0"]
    shutil.rmtree(run, ignore_errors=True)  # of a run that was interrupted
    wall, cpu, before = time.monotonic(), time.process_time(), Path.cwd()
    os.chdir(folder)  # the paths in the configs are relative
    try:
        finetune(str(CONFIGS / f"{task}.py"), overrides)
    finally:
        os.chdir(before)
    cost = {"steps": steps, "seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}
    write_json(finished, cost)
    return run


if __name__ == "__main__":
    target, updates, *entries = sys.argv[1:]
    for entry in entries:
        name, _, number = entry.partition(":")
        train(name, int(number), Path(target), int(updates) or None)
