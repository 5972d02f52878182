"""Benchmark with real images: small models learn from new random weights to find and count blood cells (BCCD).

Four models train with finetune.py on the official split: boxes of white cells by box heads and as text, the number of
red cells, and the presence of platelets. README.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import numpy as np
from bccd_work import TASKS, prepare
from interleaved import machine

from mllm.config.hardware import installed
from mllm.engine.predictions import answers_of, read_predictions
from mllm.metrics.bootstrap import interval, resampled_weights
from mllm.metrics.coco import CocoAP
from mllm.metrics.rankings import AUROC
from mllm.structures import Answer, Mark

SOURCE = "https://github.com/Shenggan/BCCD_Dataset"
Figure = Callable[[np.ndarray], np.ndarray]
"""Function from weights [R, N] of the test images to the figure [R]."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    title: str
    figure: str
    seeds: list[Figure]
    """The figure of each seed."""
    baseline: str
    constant: Figure
    """The figure of the trivial baseline."""
    images: int

    def values(self) -> dict[str, Any]:
        """Return the means over the seeds with 95 % intervals from a bootstrap over the images."""
        weights = np.concatenate(list(resampled_weights(np.arange(self.images))))
        whole = np.ones((1, self.images))
        each = [float(seed(whole)[0]) for seed in self.seeds]
        resampled = np.mean([seed(weights) for seed in self.seeds], axis=0)
        constant = self.constant(weights)
        return {
            "task": self.title,
            "figure": self.figure,
            "seeds": each,
            "mean": float(np.mean(each)),
            "interval": interval(resampled),
            "baseline": self.baseline,
            "baseline_value": float(self.constant(whole)[0]),
            "difference": float(np.mean(each) - self.constant(whole)[0]),
            "difference_interval": interval(resampled - constant),
        }


def counting_rows(runs: Sequence[Path], train: dict[str, Any]) -> list[Row]:
    """Return the lines of the number of red cells, against the mean and the median of the training split."""
    known = counts_of(train, "RBC")
    pairs = [[answers_of(row) for row in read_predictions(run / "predictions.jsonl")] for run in runs]
    true = np.array([reference.measures["cells"] for _, reference in pairs[0]])

    def error(predicted: Any) -> Figure:
        return lambda weights: weights @ np.abs(predicted - true) / weights.sum(axis=1)

    seeds = [error(np.array([prediction.measures["cells"] for prediction, _ in answers])) for answers in pairs]
    constants = {"mean of the training split": known.mean(), "median of the training split": np.median(known)}
    return [
        Row("number of red cells", "MAE", seeds, name, error(value), len(true)) for name, value in constants.items()
    ]


def presence_rows(runs: Sequence[Path], train: dict[str, Any]) -> list[Row]:
    """Return the lines of the presence of platelets by their predicted number.

    AUROC of this number against chance, and the accuracy of a number of at least 0.5 against the majority.
    """
    majority = (counts_of(train, "Platelets") > 0).mean() >= 0.5
    areas, correct = [], []
    for run in runs:
        pairs = [answers_of(row) for row in read_predictions(run / "predictions.jsonl")]
        numbers = np.array([prediction.measures["platelets"] for prediction, _ in pairs])
        is_present = np.array([reference.measures["platelets"] > 0 for _, reference in pairs])
        metric = AUROC()
        for number, truth in zip(numbers, is_present, strict=True):
            metric.add(Answer("", scores={"yes": number, "no": -number}), Answer("yes" if truth else "no"))
        areas.append(lambda weights, metric=metric: metric.figures(weights)["auroc"])
        correct.append(share((numbers >= 0.5) == is_present))
    title, count = "presence of platelets", len(is_present)
    return [
        Row(title, "AUROC", areas, "chance", lambda weights: np.full(len(weights), 0.5), count),
        Row(title, "accuracy", correct, "most frequent answer", share(is_present == majority), count),
    ]


def share(is_true: np.ndarray) -> Figure:
    """Return the weighted share of the images for which something is true."""
    return lambda weights: weights @ is_true.astype(float) / weights.sum(axis=1)


def detection_rows(runs: Sequence[Path], train: dict[str, Any], method: str) -> list[Row]:
    """Return the line of AP50 of white cells, against one constant box: the median box of the training split."""
    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes_of(train, "WBC")])
    x1, y1, x2, y2 = np.median(corners, axis=0).tolist()
    constant = Answer("", (Mark(box=(x1, y1, x2, y2)),))
    answers = [[answers_of(row) for row in read_predictions(run / "predictions.jsonl")] for run in runs]
    seeds = [average_precision(pairs) for pairs in answers]
    same = average_precision([(constant, reference) for _, reference in answers[0]])
    return [Row(f"white cells, {method}", "AP50", seeds, "median box", same, len(answers[0]))]


def average_precision(pairs: Sequence[tuple[Answer, ...]]) -> Figure:
    """Return AP at IoU 0.5 of COCO's API."""
    metric = CocoAP()
    for prediction, reference in pairs:
        metric.add(prediction, reference)
    return lambda weights: metric.figures(weights)["box_AP50"]


def boxes_of(split: dict[str, Any], label: str) -> list[list[float]]:
    """Return the boxes of a class in a COCO file, x y width height."""
    number = next(entry["id"] for entry in split["categories"] if entry["name"] == label)
    return [entry["bbox"] for entry in split["annotations"] if entry["category_id"] == number]


def counts_of(split: dict[str, Any], label: str) -> np.ndarray:
    """Return the number of objects of a class in each image of a COCO file, [N]."""
    number = next(entry["id"] for entry in split["categories"] if entry["name"] == label)
    owners = [entry["image_id"] for entry in split["annotations"] if entry["category_id"] == number]
    return np.array([owners.count(image["id"]) for image in split["images"]])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| task | figure | trivial baseline | model: mean of seeds [95 % by image] | each seed | difference [95 %] |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["task"], row["figure"], f"{row['baseline']}: {row['baseline_value']:.2f}"]
        cells.append(f"{row['mean']:.2f} {_brackets(row['interval'])}")
        cells.append(", ".join(f"{value:.2f}" for value in row["seeds"]))
        cells.append(f"{row['difference']:+.2f} {_brackets(row['difference_interval'])}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _brackets(limits: Sequence[float]) -> str:
    return f"[{limits[0]:.2f}, {limits[1]:.2f}]"


def figures_of(folder: Path, tasks: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """Return the lines of the table from the finished runs in `folder`."""
    train = json.loads((folder / "data" / "train.json").read_text())
    rows: list[Row] = []
    for task in tasks:
        runs = [folder / f"{task}-{seed}" for seed in range(seeds)]
        if task == "counting":
            rows += counting_rows(runs, train)
        elif task == "presence":
            rows += presence_rows(runs, train)
        else:
            rows += detection_rows(runs, train, "box heads" if task == "detection_heads" else "boxes as text")
    return [row.values() for row in rows]


def start(folder: Path, runs: Sequence[str], steps: int | None) -> subprocess.Popen[str]:
    """Start a process with one thread that makes some runs one after another."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).with_name("bccd_work.py")), str(folder), str(steps or 0), *runs]
    return subprocess.Popen(command, env=environment, text=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help=f"the folder BCCD of {SOURCE}")
    parser.add_argument("--out", type=Path, default=Path("exp/bccd"), help="folder of all runs; finished ones are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--processes", type=int, default=2, help="parallel runs, each with one thread")
    parser.add_argument("--steps", type=int, help="updates of each run, for a trial")
    options = parser.parse_args(argv)
    if not (options.data / "ImageSets" / "Main" / "train.txt").is_file():
        sys.exit(f"{options.data} is not the folder BCCD of {SOURCE}, with Annotations, ImageSets and JPEGImages: "
                 "download it, and name its folder")  # fmt: skip
    data, folder = options.data.resolve(), options.out.resolve()
    prepare(data, folder)
    runs = [f"{task}:{seed}" for seed in range(options.seeds) for task in options.tasks]
    processes = [start(folder, runs[i :: options.processes], options.steps) for i in range(options.processes)]
    if any([process.wait() for process in processes]):
        sys.exit("a run failed: its message is above")
    rows = figures_of(folder, options.tasks, options.seeds)
    costs = {run: json.loads((folder / run.replace(":", "-") / "cost.json").read_text()) for run in runs}
    (folder / "bccd.json").write_text(json.dumps({"rows": rows, "costs": costs}, indent=1))
    (folder / "bccd.md").write_text(table(rows) + "\n")
    minutes = {key: sum(cost[key] for cost in costs.values()) / 60 for key in ("seconds", "cpu_seconds")}
    print(f"\n{table(rows)}\n\n{len(runs)} runs: {minutes['seconds']:.1f} minutes, {minutes['cpu_seconds']:.1f} of CPU")
    print(
        f"each run: {machine(1)}; {', '.join(' '.join(pair) for pair in installed(['torch', 'transformers']).items())}"
    )
    print(f"reports: {folder}/*/report.html")


if __name__ == "__main__":
    main()
