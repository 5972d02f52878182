"""Metrics of referring expression comprehension and segmentation.

Boxes and masks are compared in pixels of the original image. Marks in different images do not overlap. A prediction
without a readable box or mask has an overlap of 0 and is counted in `failed`. Boxes that a question names are not part
of an answer and are not scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mllm.metrics.areas import box_iou, boxes_of, greedy_overlaps, mask_overlap, union_masks
from mllm.metrics.base import reads
from mllm.registry import METRICS
from mllm.structures import Answer

CORRECT_IOU = 0.5
"""A box is correct if its IoU is greater."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@METRICS.register_module(name="rec")
@reads("box")
def rec(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Compute accuracy and mean IoU of referring expression comprehension.

    A reference with one box is compared with the first predicted box. Several boxes are matched one to one, the pair
    with the largest IoU first, and the score of a sample is the sum over its pairs divided by the larger number of
    boxes, so that surplus boxes cost as much as missing ones.

    Returns:
        `accuracy` (IoU > 0.5), `mean_iou`, `failed` (predictions without a readable box; their score is 0),
        `target_failed` (references without a box; they are not scored) and `samples` (scored samples).
    """
    assert len(predictions) == len(references)
    correct, overlaps = [], []
    failed = target_failed = 0
    for prediction, reference in zip(predictions, references, strict=True):
        predicted, true = boxes_of(prediction), boxes_of(reference)
        if not true:
            target_failed += 1
            continue
        failed += not predicted
        if len(true) == 1:
            predicted = predicted[:1]
        values = greedy_overlaps(predicted, true, box_iou)
        count = max(len(predicted), len(true))
        correct.append(sum(value > CORRECT_IOU for value in values) / count)
        overlaps.append(sum(values) / count)
    return {
        "accuracy": _mean(correct),
        "mean_iou": _mean(overlaps),
        "failed": failed,
        "target_failed": target_failed,
        "samples": len(correct),
    }


@METRICS.register_module(name="res")
@reads("mask")
def res(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Compute IoU and precision of referring expression segmentation.

    The masks of an answer are united. A reference with an empty mask or without marks means that there is no target.
    Such samples are counted separately (as in GRES, arXiv:2306.00968).

    Returns:
        `cIoU`: sum of all intersections over the sum of all unions. `gIoU`: mean IoU of the samples. `Pr@0.5` to
        `Pr@0.9`: fraction of samples with a larger IoU. `box_accuracy@0.5`: `accuracy` of `rec` on the same samples,
        with bounding boxes of masks. `failed`: predictions without a mask; their IoU is 0. `target_failed`: references
        with marks but no mask; they are not scored. `samples`: scored samples with a target. `no_target`: samples
        without a target. `no_target_accuracy`: fraction of these with an empty prediction.
    """
    assert len(predictions) == len(references)
    intersections, unions, with_target = [], [], []
    empty = failed = target_failed = no_target = 0
    for prediction, reference in zip(predictions, references, strict=True):
        predicted, true = union_masks(prediction), union_masks(reference)
        if reference.marks and not true:
            target_failed += 1
        elif not any(mask.any() for mask in true.values()):
            no_target += 1
            empty += not any(mask.any() for mask in predicted.values())
        else:
            failed += not predicted
            intersection, union = mask_overlap(predicted, true)
            intersections.append(intersection)
            unions.append(union)
            with_target.append((prediction, reference))
    ious = [intersection / union for intersection, union in zip(intersections, unions, strict=True)]
    boxes = rec([pair[0] for pair in with_target], [pair[1] for pair in with_target])
    return {
        "cIoU": sum(intersections) / sum(unions) if unions else float("nan"),
        "gIoU": _mean(ious),
        **{f"Pr@{threshold}": _mean([iou > threshold for iou in ious]) for threshold in THRESHOLDS},
        "box_accuracy@0.5": boxes["accuracy"],
        "failed": failed,
        "target_failed": target_failed,
        "samples": len(ious),
        "no_target": no_target,
        **({"no_target_accuracy": empty / no_target} if no_target else {}),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
