"""F1 of detected objects: boxes, and boxes by identity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from mllm.metrics.areas import Box, box_iou, boxes_of, greedy_overlaps
from mllm.metrics.base import DETECTION, INSTANCES, SumMetric, reads
from mllm.metrics.packages import optional
from mllm.parsing import parse_boxes, parse_instances
from mllm.registry import METRICS
from mllm.structures import Answer

Matching = Callable[[Sequence[Box], Sequence[Box]], list[float]]
"""Predicted and true boxes -> IoU of each matched pair."""


def objects_of(answer: Answer) -> list[Box] | None:
    """Return the boxes of an answer: its marks, or those that its text lists; None if it can be read as neither."""
    boxes = boxes_of(answer)
    if boxes or answer.marks:
        return boxes
    listed = None if answer.unreadable else parse_boxes(answer.text)
    return None if listed is None else [Box(0, corners) for corners in listed]


def greedy(predictions: Sequence[Box], targets: Sequence[Box]) -> list[float]:
    """Match one to one, the pair with the largest IoU first."""
    return greedy_overlaps(predictions, targets, box_iou)


def hungarian(predictions: Sequence[Box], targets: Sequence[Box]) -> list[float]:
    """Match one to one with the largest sum of IoU (Kuhn 1955), by `linear_sum_assignment` of SciPy."""
    if not predictions or not targets:
        return []
    assignment = optional("scipy.optimize").linear_sum_assignment
    ious = np.array([[box_iou(first, second) for second in targets] for first in predictions])
    rows, columns = assignment(ious, maximize=True)
    return [float(iou) for iou in ious[rows, columns] if iou > 0]


class DetectionMetric(SumMetric):
    """Base of F1 of boxes, with true and false positives and missed objects pooled over all samples.

    An object is found if its IoU with its match is larger than 0.5. Boxes are marks of an answer, or those that its
    text lists (`[10, 20, 30, 40]`); objects have one class. An answer without readable boxes, `none` excepted, is
    failed: its objects are missed, and it counts as one false positive where there is none.

    Figures: `f1_MATCHING@0.5` (the matching is in the name), `precision@0.5`, `recall@0.5`, `failed` and `samples`.
    """

    tasks = frozenset({DETECTION})
    columns = ("found", "predicted", "true")
    name: ClassVar[str]

    @abstractmethod
    def match(self, predictions: Sequence[Box], targets: Sequence[Box]) -> list[float]:
        """Return the IoU of each matched pair."""

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float] | None:
        """Return the number of found, predicted and true objects; None without a readable reference."""
        true = objects_of(reference)
        if true is None:
            return None
        predicted = objects_of(prediction)
        if predicted is None:
            self.failed += 1
            return 0, not true, len(true)
        return sum(iou > 0.5 for iou in self.match(predicted, true)), len(predicted), len(true)

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return F1, precision and recall; NaN without an object."""
        true_positives, predicted, true = (sums[column] for column in self.columns)
        return {
            f"f1_{self.name}@0.5": 2 * true_positives / (predicted + true),
            "precision@0.5": true_positives / predicted,
            "recall@0.5": true_positives / true,
        }


@METRICS.register_module(name="detection_f1")
@reads("objects")
class GreedyDetectionF1(DetectionMetric):
    """F1 of boxes at IoU 0.5, matched greedily: the pair with the largest IoU first; see `DetectionMetric`."""

    name = "greedy"

    def match(self, predictions: Sequence[Box], targets: Sequence[Box]) -> list[float]:
        """Return the IoU of each matched pair."""
        return greedy(predictions, targets)


@METRICS.register_module(name="detection_f1_hungarian")
@reads("objects")
class HungarianDetectionF1(DetectionMetric):
    """F1 of boxes at IoU 0.5, matched with the largest sum of IoU; see `DetectionMetric`. Requires SciPy."""

    name = "hungarian"
    packages = ("scipy",)

    def match(self, predictions: Sequence[Box], targets: Sequence[Box]) -> list[float]:
        """Return the IoU of each matched pair."""
        return hungarian(predictions, targets)


@METRICS.register_module(name="instance_f1")
@reads("instances")
class InstanceF1(SumMetric):
    """F1 of boxes by identity: `{"1": [[x1, y1, x2, y2], ...], ...}` in JSON, as in chromosomes of FLARE.

    Boxes of one identity are matched greedily; a box with another identity is never a match. Objects are pooled over
    all samples. An answer that is no such JSON is failed: its objects are missed, and it counts as one false positive
    where there is none.

    Figures: `f1@0.5` (IoU larger than 0.5), `f1@0.3:0.7` (mean at IoU 0.3, 0.4, 0.5, 0.6 and 0.7), `failed` and
    `samples`.
    """

    tasks = frozenset({INSTANCES})
    thresholds = (0.3, 0.4, 0.5, 0.6, 0.7)
    columns = (*(f"found@{threshold}" for threshold in thresholds), "predicted", "true")

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float] | None:
        """Return the number of found objects at each IoU, and of predicted and true ones."""
        true = parse_instances(reference.text)
        if true is None:
            return None
        count = sum(map(len, true.values()))
        predicted = parse_instances(prediction.text)
        if predicted is None:
            self.failed += 1
            return *[0] * len(self.thresholds), not count, count
        ious = [
            iou
            for identity, boxes in predicted.items()
            for iou in greedy(_boxes(boxes), _boxes(true.get(identity, [])))
        ]
        true_positives = [sum(iou > threshold for iou in ious) for threshold in self.thresholds]
        return *true_positives, sum(map(len, predicted.values())), count

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return F1 at IoU 0.5 and its mean over the thresholds."""
        objects = sums["predicted"] + sums["true"]
        scores = [2 * sums[f"found@{threshold}"] / objects for threshold in self.thresholds]
        return {"f1@0.5": scores[2], "f1@0.3:0.7": np.mean(scores, axis=0)}


def _boxes(corners: Sequence[tuple[float, float, float, float]]) -> list[Box]:
    return [Box(0, box) for box in corners]
