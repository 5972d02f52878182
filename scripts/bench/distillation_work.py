"""One run of the benchmark of distillation: training of a teacher or a student with `finetune.py`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from PIL.Image import Image
from typing_extensions import override

from mllm.config.hardware import CHECKOUT
from mllm.dataset.echo.cine import MEASURES, CineDataset
from mllm.dataset.indices import from_zero
from mllm.dataset.video_dataset.phantom_echo import PhantomEchoDataset
from mllm.pipeline import finetune
from mllm.pipeline.command import run_command
from mllm.registry import DATASETS
from mllm.tiny.checkpoints import write_tiny

PIXELS = 112
"""Width and height of the phantoms and of the teacher's images in pixels."""
STUDENT = dict(image_size=64, resolution=2)
"""Image size of the student in pixels, and width of its last feature map."""
BATCH = 16
"""Patients per update."""
SEEDS = {"teacher": 5, "validation": 6, "held-out": 7, "students": 100}
"""Seeds of the hearts of each set; the seed of a student is added to that of its set."""
MATCHING: dict[str, Mapping[str, Any] | None] = {
    "alone": None,
    "pooled": dict(grid=1),
    "grid": dict(grid=4),
    "pooled-unlabeled": dict(grid=1),
    "grid-unlabeled": dict(grid=4),
}
"""Options of FeatureMatch for each method; None: no teacher."""
HEAD = dict(measures=dict(type="RegressionHead", measures=list(MEASURES), views=["ED", "ES"]))


@DATASETS.register_module()
class CachedEchoDataset(CineDataset):
    """Phantoms that are generated once: `labeled` hearts alternate with `unlabeled` ones, for `length` samples.

    One epoch is as long as the run, so that no time is spent between epochs of a few hearts.
    """

    def __init__(self, labeled: int, unlabeled: int, length: int, seed: int, image_size: int = PIXELS) -> None:
        super().__init__()
        self.hearts = PhantomEchoDataset(labeled + unlabeled, seed, image_size)
        self.labeled, self.unlabeled, self.length = labeled, unlabeled, length
        self.images: dict[int, dict[str, Image]] = {}

    def __len__(self) -> int:
        return self.length

    def heart(self, index: int) -> int:
        """Return the heart of an index; if there are unlabeled hearts, every second index is one of them."""
        index = from_zero(index, len(self))
        if not self.unlabeled:
            return index % self.labeled
        cycle, is_unlabeled = divmod(index, 2)
        return self.labeled + cycle % self.unlabeled if is_unlabeled else cycle % self.labeled

    @override
    def views(self, index: int) -> dict[str, Image]:
        heart = self.heart(index)
        if heart not in self.images:
            self.images[heart] = self.hearts.views(heart)
        return self.images[heart]

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        heart = self.heart(index)
        return self.hearts.measures(heart) if heart < self.labeled else dict.fromkeys(MEASURES, math.nan)

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return self.hearts.describe(self.heart(index))

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return self.hearts.group(self.heart(index))


def hearts(kind: str, labeled: int, *, unlabeled: int = 0, length: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Return the config entry of a dataset of hearts."""
    seed = SEEDS[kind] + seed
    length = labeled if length is None else length
    return dict(type="CachedEchoDataset", labeled=labeled, unlabeled=unlabeled, length=length, seed=seed)


def config(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the contents of the config file of a teacher or a student."""
    is_teacher = options.method == "teacher"
    family, vision = ("medsiglip", {}) if is_teacher else ("gemma3n-student", STUDENT)
    base = write_tiny(family, folder / f"{family}-{options.seed}", seed=options.seed, vision=vision)
    unlabeled = options.unlabeled if options.method.endswith("-unlabeled") else 0
    values = dict(
        model_args=dict(
            type=family,
            model_name_or_path=str(base),
            part="vision",
            train_vision=True,
            lora_r=None,
            heads=HEAD,
        ),
        objectives=dict(next_token=None, measures=dict(type="MeasureLoss")),
        data_args=dict(
            train=hearts(
                "teacher" if is_teacher else "students",
                options.labeled,
                unlabeled=unlabeled,
                length=BATCH * options.steps,
                seed=options.seed,
            ),
            test=hearts(options.split, options.test_hearts),
            compute_metric="measures",
            on_error="raise",
        ),
        training_args=dict(
            num_train_epochs=1,
            learning_rate=options.rate,
            warmup_steps=0.1,
            per_device_train_batch_size=BATCH,
            logging_steps=max(1, options.steps // 20),
            eval_strategy="no",
            save_strategy="no",
            dataloader_num_workers=0,
            report_to=[],
            seed=options.seed,
        ),
    )
    matching = None if is_teacher else MATCHING[options.method]
    if matching is not None:
        values["objectives"]["feature_match"] = dict(type="FeatureMatch", weight=options.weight, **matching)
        values["distill_args"] = dict(
            teacher=dict(type="medsiglip", model_name_or_path=str(options.teacher.resolve())),
            cache_folder=str(folder / "teacher_cache"),
        )
    return values


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Train one model; return the errors on the evaluated hearts, the losses, and the folder of the trained model."""
    torch.set_num_threads(options.threads)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{options.method}-{options.split}-{options.seed}-{options.rate}-{options.weight}"
    runtime = CHECKOUT / "config" / "_base_" / "runtime" / "finetune.py"
    lines = [f"{key} = {value!r}" for key, value in config(options, folder).items()]
    (folder / f"{name}.py").write_text("\n".join([f"_base_ = [{str(runtime)!r}]", *lines, ""]), encoding="utf-8")
    os.chdir(folder)
    started = time.process_time()
    if run_command(finetune.main, [f"{name}.py"]):
        sys.exit(f"{name} failed")
    run = folder / "exp" / name / "latest"
    rows = json.loads((run / "training_log.json").read_text())["rows"]
    losses = [{key: row[key] for key in ("loss", "measures", "feature_match") if key in row} for row in rows]
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    return {
        "errors": {
            name: [row["measures"][name] - row["reference_measures"][name] for row in predictions] for name in MEASURES
        },
        "losses": [row for row in losses if row],
        "student": str(run.resolve() / "student"),
        "seconds": time.process_time() - started,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=["teacher", *MATCHING], required=True)
    parser.add_argument("--rate", type=float, required=True, help="learning rate")
    parser.add_argument("--weight", type=float, default=1.0, help="weight of FeatureMatch")
    parser.add_argument("--split", choices=["validation", "held-out"], required=True)
    for name in ("seed", "steps", "labeled", "unlabeled", "test-hearts", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="output folder; runs share the cache in it")
    parser.add_argument("--teacher", type=Path, help="folder of the trained teacher")
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(argv)
    options.result = options.result.resolve()
    options.result.write_text(json.dumps(work(options)))


if __name__ == "__main__":
    main()
