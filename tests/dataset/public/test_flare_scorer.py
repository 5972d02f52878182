"""A whole predictions.json of FLARE, scored by a program of its own, has the figures of the metrics."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flare_rules import read_as_the_baselines_do

from mllm.dataset.builder import build_dataset
from mllm.dataset.challenge import write_challenge_files
from mllm.dataset.public.flare import FLAREDataset
from mllm.engine.predictions import answers_of
from mllm.metrics.scoring import Scorer
from mllm.predict.metrics import find_metrics
from mllm.structures import Answer

METRICS = ["balanced_accuracy", "f1", "detection_f1", "instance_f1", "mae"]
OPTIONS = {"a lesion": "A", "none": "B", "another": "T"}
UNREADABLE = "I cannot see it"


def box(rng: np.random.Generator) -> list[int]:
    x, y = rng.integers(0, 100, 2).tolist()
    return [x, y, x + int(rng.integers(20, 60)), y + int(rng.integers(20, 60))]


def moved(one: list[int], rng: np.random.Generator) -> list[int]:
    """Return a box that overlaps with another one, by less or more than half."""
    return [value + int(rng.integers(-9, 10)) for value in one]


def reference(task: str, question: str, rng: np.random.Generator) -> Any:
    """Return a random answer to a question."""
    if task == "classification":
        return str(rng.choice(["benign", "malignant"] if "benign" in question else list(OPTIONS.values())))
    if task == "multi_label_classification":
        return str(rng.choice(["A", "B", "A;B", "A,B"]))
    if task == "detection":
        return "; ".join(str(box(rng)) for _ in range(rng.integers(1, 4)))
    if task == "instance_detection":
        return json.dumps({str(number): [box(rng)] for number in range(1, int(rng.integers(2, 5)))})
    return "clear" if task == "report_generation" else str(int(rng.integers(1, 30)))


def prediction(task: str, question: str, true: str, rng: np.random.Generator) -> str:
    """Return an answer that is right, near, wrong or unreadable."""
    kind = rng.random()
    if kind < 0.15:
        return UNREADABLE
    if kind < 0.4:
        return true
    if task == "detection":
        return "; ".join(str(moved(one, rng)) for one in read_as_the_baselines_do(true, task)[:2])
    if task == "instance_detection":
        boxes = {name: [moved(ones[0], rng)] for name, ones in json.loads(true).items()}
        return json.dumps({**boxes, "9": [box(rng)]})
    return str(reference(task, question, rng))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of `predictions.json`, with the reference, the task and our row of the figures as `true`, `task`, `own`."""
    rng, tmp_path = np.random.default_rng(3), tmp_path_factory.mktemp("flare")
    options = {"type": "FLAREDataset", **FLAREDataset.miniature(tmp_path / "flare", 38)}
    root = Path(options["data_path"])
    tasks = {(entry["row"]["Question"], str(entry["row"]["TaskType"])): entry["task"] for entry in entries(options)}
    for file in sorted(root.rglob("*_questions_*.json")):
        published = json.loads(file.read_text())
        published = [
            {**row, "Answer": reference(tasks[row["Question"], str(row["TaskType"])], row["Question"], rng)}
            for row in published * 6
        ]
        file.write_text(json.dumps(published))
    split = build_dataset(options)
    answers = {
        index: Answer(prediction(entry["task"], entry["row"]["Question"], entry["answer"], rng))
        for index, entry in enumerate(split.entries)
    }
    (path,) = write_challenge_files(split, answers.items(), tmp_path)
    own = [
        {
            "question": sample.turns[-2].text,
            "reference": sample.turns[-1].text,
            "prediction": answers[index].text,
            "task": sample.task,
        }
        for index, sample in ((index, split.inspect(index)) for index in range(len(split)))
    ]
    written = json.loads(path.read_text())
    return [
        {**row, "true": entry["answer"], "task": entry["task"], "own": ours}
        for row, entry, ours in zip(written, split.entries, own, strict=True)
    ]


def entries(options: dict[str, Any]) -> list[dict[str, Any]]:
    return build_dataset(options).entries


def iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(0, width) * max(0, height)
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (first, second)]
    return common / (sum(areas) - common)


def f1(found: float, predicted: float, true: float) -> float:
    return 2 * found / (predicted + true)


def of_task(rows: list[dict[str, Any]], task: str) -> list[tuple[Any, Any]]:
    """Return the values of prediction and reference by the rules of the published scorers."""
    chosen = [row for row in rows if row["task"] == task]
    return [
        (read_as_the_baselines_do(row["Answer"], task), read_as_the_baselines_do(row["true"], task)) for row in chosen
    ]


@pytest.fixture(scope="module")
def figures(rows) -> dict[str, dict[str, float]]:
    """Our figures of the same answers."""
    scorer = Scorer(find_metrics(METRICS))
    for row in rows:
        scorer.add(*answers_of(row["own"]))
    return scorer.figures()


def test_balanced_accuracy(rows, figures) -> None:
    hits = defaultdict(list)
    for predicted, true in of_task(rows, "classification"):
        hits[true].append(predicted == true)
    recall = np.mean([np.mean(ones) for ones in hits.values()])
    assert figures["balanced_accuracy"]["balanced_accuracy"] == pytest.approx(recall, rel=1e-9)


def test_f1_of_labels(rows, figures) -> None:
    sets = [
        (set() if predicted == [UNREADABLE] else set(predicted), set(true))  # the labels of a failed answer are missed
        for predicted, true in of_task(rows, "multi_label_classification")
    ]
    micro = f1(*(sum(values) for values in zip(*((len(p & t), len(p), len(t)) for p, t in sets), strict=True)))
    samples = np.mean([f1(len(p & t), len(p), len(t)) for p, t in sets])
    labels = figures["f1/multi_label_classification"]
    assert (labels["f1_micro"], labels["f1_samples"]) == pytest.approx((micro, samples), rel=1e-9)


@pytest.mark.parametrize("task", ["counting", "regression"])
def test_errors_of_numbers(task, rows, figures) -> None:
    pairs = of_task(rows, task)
    low, high = 0, max(true for _, true in pairs)  # a failed answer is the farther one of these
    errors = [max(true - low, high - true) if predicted is None else abs(predicted - true) for predicted, true in pairs]
    assert figures[f"mae/{task}"]["mae"] == pytest.approx(np.mean(errors), rel=1e-9)


def test_f1_of_boxes(rows, figures) -> None:
    found = predicted_boxes = true_boxes = 0
    for predicted, true in of_task(rows, "detection"):
        left = list(true)
        for one in predicted:
            best = max(left, key=lambda other: iou(one, other), default=None)
            if best is not None and iou(one, best) > 0.5:
                left.remove(best)
                found += 1
        predicted_boxes, true_boxes = predicted_boxes + len(predicted), true_boxes + len(true)
    assert figures["detection_f1"]["f1_greedy@0.5"] == pytest.approx(f1(found, predicted_boxes, true_boxes), rel=1e-9)


def test_f1_of_boxes_with_names(rows, figures) -> None:
    found = predicted_boxes = true_boxes = 0
    for predicted, true in of_task(rows, "instance_detection"):
        found += sum(iou(predicted[name][0], ones[0]) > 0.5 for name, ones in true.items() if name in predicted)
        predicted_boxes, true_boxes = predicted_boxes + len(predicted), true_boxes + len(true)
    expected = f1(found, predicted_boxes, true_boxes)
    assert figures["instance_f1"]["f1@0.5"] == pytest.approx(expected, rel=1e-9)
