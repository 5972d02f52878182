"""Benchmark of the size of a training set: time and memory of an epoch of 1,000, 10,000 and 100,000 generated rows.

Tiny random models train with finetune.py, so that the work around the model is a large part of the time. README.md has
the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np
from interleaved import machine
from PIL import Image

from mllm.run_files import LATEST, TRAINING_LOG
from mllm.tiny.checkpoints import write_tiny

SIZES = (1_000, 10_000, 100_000)
IMAGES = 200
"""Number of different images. Each is stored once as features of the frozen vision tower."""
WORDS = ("lung", "heart", "effusion", "opacity", "normal", "left", "right", "upper", "lower", "lobe", "small", "acute")
BATCH = 64
"""Samples of an update."""
TEMPLATE = "{% for turn in messages %}{{ turn['content'] ~ eos_token }}{% endfor %}"


MODEL_ARGS: dict[str, dict[str, Any]] = {
    "text": {"type": "causal-lm", "max_length": 256, "chat_template": TEMPLATE},
    "images": {"type": "medgemma", "image_size": 112, "image_token_len": 16, "max_length": 256},
}
DATA: dict[str, dict[str, Any]] = {
    "text": {"type": "TextQADataset", "question": "question", "answer": "answer"},
    "images": {"type": "VQADataset", "image_folder": "images"},
}
CHECKPOINTS = {"text": "vaultgemma", "images": "medgemma"}
"""Name of the tiny checkpoint of each workload."""
LABELS = {"text": "texts, packed", "images": "images with stored features"}


def write_rows(path: Path, rows: int, with_images: bool) -> None:
    """Write questions of 5 to 30 words and answers of 1 to 10 words as JSON lines."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            question, answer = (" ".join(draw.choices(WORDS, k=draw.randint(*k))) for k in ((5, 30), (1, 10)))
            row = {"question": f"{number} {question}?", "answer": answer, "patient": f"P{number}"}
            file.write(json.dumps(row | ({"image": f"{number % IMAGES:03}.png"} if with_images else {})) + "\n")


def write_run(kind: str, folder: Path, rows: int) -> Path:
    """Write the tiny checkpoint, the rows, the images and the config of a run into a folder, and return the config."""
    write_tiny(CHECKPOINTS[kind], folder / "model")
    write_rows(folder / "rows.jsonl", rows, kind == "images")
    if kind == "images":
        (folder / "images").mkdir()
        for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (IMAGES, 112, 112), np.uint8)):
            Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
    updates = rows // BATCH
    values = {
        "model_args": {"model_name_or_path": "model", "lora_r": 8, "lora_target": "language", **MODEL_ARGS[kind]},
        "objectives": {"next_token": {"type": "NextToken"}},
        "data_args": {
            "train": {"data_path": "rows.jsonl", **DATA[kind]},
            "tokens_per_micro_batch": 4096,
            "packing": kind == "text",
        },
        "training_args": {
            "num_train_epochs": 1,
            "per_device_train_batch_size": BATCH,
            "learning_rate": 1e-3,
            "logging_steps": max(1, updates // 10),
            "save_strategy": "no",
            "eval_strategy": "no",
            "dataloader_num_workers": 0,
            "report_to": [],
        },
    }
    config = folder / "scaling.py"
    config.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
    return config


def children_seconds() -> float:
    """Return the CPU seconds of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def train(kind: str, rows: int) -> dict[str, float]:
    """Train an epoch; return the seconds of the updates and of the run, and the peak memory in 10^9 bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, str(ROOT / "mllm/pipeline/finetune.py"), write_run(kind, folder, rows).name]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        wall, cpu = time.perf_counter(), children_seconds()
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **threads, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{done.stdout[-4000:]}\n{' '.join(command)} failed with exit code {done.returncode}")
        wall, cpu = time.perf_counter() - wall, children_seconds() - cpu
        entries = [
            entry
            for entry in json.loads((folder / "exp" / "scaling" / LATEST / TRAINING_LOG).read_text())["rows"]
            if "peak_memory_gb" in entry
        ]
    first, last = entries[0], entries[-1]
    return {
        "seconds": last["seconds"],
        "wall": wall,
        "cpu": cpu,
        "first": first["peak_memory_gb"],
        "last": last["peak_memory_gb"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="numbers of rows")
    options = parser.parse_args(argv)
    print("| rows | | s of updates | ms per row | s of the run | its CPU s | GB after a tenth | GB at the end |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        for rows in options.sizes:
            run = train(kind, rows)
            cells = [f"{rows:,}", LABELS[kind], f"{run['seconds']:.1f}", f"{1000 * run['seconds'] / rows:.2f}"]
            cells += [f"{run['wall']:.1f}", f"{run['cpu']:.1f}", f"{run['first']:.3f}", f"{run['last']:.3f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{machine(1)}")


if __name__ == "__main__":
    main()
