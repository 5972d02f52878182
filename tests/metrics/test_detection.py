"""F1 of boxes against pycocotools and matchings computed by hand."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scores import score

from mllm.metrics.areas import Box, box_iou
from mllm.metrics.coco import CocoAP
from mllm.metrics.detection import GreedyDetectionF1, HungarianDetectionF1, InstanceF1, greedy, hungarian
from mllm.structures import Answer, Mark


def scene(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.integers(0, 60, (count, 2))
    return np.concatenate([corners, corners + rng.integers(5, 40, (count, 2))], axis=1)


def test_precision_and_recall_of_separate_objects_are_those_of_pycocotools() -> None:
    """Objects 100 pixels apart, so that every matching is the same."""
    rng = np.random.default_rng(0)
    answers: list[Answer] = []
    references: list[Answer] = []
    for _ in range(40):
        true = np.array([[100 * i, 0, 100 * i + 40, 40] for i in range(rng.integers(1, 5))], float)
        moved = true[rng.random(len(true)) < 0.8] + rng.integers(-12, 13, (1, 4))
        references.append(Answer("", tuple(Mark(box=tuple(box)) for box in true)))
        answers.append(Answer("", tuple(Mark(box=tuple(box)) for box in moved)) if len(moved) else Answer("none"))
    coco = score(CocoAP, answers, references)
    for metric in (GreedyDetectionF1, HungarianDetectionF1):
        figures = score(metric, answers, references)
        precision, recall = coco["box_precision@0.5"], coco["box_recall@0.5"]
        assert (figures["precision@0.5"], figures["recall@0.5"]) == pytest.approx((precision, recall))
        assert figures[f"f1_{metric.name}@0.5"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_matchings_against_all_permutations() -> None:
    rng = np.random.default_rng(1)
    differ = 0
    for _ in range(60):
        first, second = ([Box(0, tuple(map(float, box))) for box in scene(rng, 4)] for _ in range(2))
        best = max(
            sum(box_iou(a, b) for a, b in zip(first, order, strict=True)) for order in itertools.permutations(second)
        )
        assert sum(hungarian(first, second)) == pytest.approx(best)
        assert max(greedy(first, second), default=0) == pytest.approx(
            max(box_iou(a, b) for a, b in itertools.product(first, second))
        )
        differ += sum(greedy(first, second)) < best - 1e-9
    assert differ, "greedy matching is not always the best one"


def test_boxes_in_text_and_failed_answers() -> None:
    """Found 1 of 3 objects with 3 predictions, of which one is a failed answer to an image without objects."""
    references = ["[0, 0, 10, 10]", "[[0, 0, 10, 10], [20, 20, 30, 30]]", "none", "none"]
    answers = ["[0, 0, 10, 9]; [50, 50, 60, 60]", "at the left", "I see nothing", "None."]
    figures = score(GreedyDetectionF1, answers, references)
    expected = {"f1_greedy@0.5": 2 / 6, "precision@0.5": 1 / 3, "recall@0.5": 1 / 3, "failed": 2, "samples": 4}
    assert figures == pytest.approx(expected)


def test_an_iou_of_exactly_one_half_is_no_match() -> None:
    assert score(GreedyDetectionF1, ["[0, 0, 10, 10]"], ["[0, 0, 10, 20]"])["f1_greedy@0.5"] == 0


def test_objects_of_another_identity_are_no_match() -> None:
    """Identity 1 is found at IoU 0.9, 0.6 is above three thresholds of five, and X is swapped with Y."""
    true = {"1": [[0, 0, 10, 10], [20, 0, 30, 10]], "X": [[40, 0, 50, 10]]}
    said = {"1": [[0, 0, 10, 9], [20, 0, 30, 6]], "Y": [[40, 0, 50, 10]]}
    figures = score(InstanceF1, [json.dumps(said), "1: [0, 0, 10, 10]"], [json.dumps(true)] * 2)
    assert figures["f1@0.5"] == pytest.approx(2 * 2 / (3 + 6))
    assert figures["f1@0.3:0.7"] == pytest.approx(np.mean([4, 4, 4, 2, 2]) / 9)
    assert (figures["failed"], figures["samples"]) == (1, 2)
