"""Figures about referred boxes and masks: is what the answer points at the thing that was meant?

Boxes and masks are compared in pixels of the original image; marks in different images never overlap. A prediction
without a readable box or mask is scored as an overlap of 0: it counts in `failed` and is never left out. A box that a
question names is no part of an answer, and is never scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mllm.metrics.areas import box_iou, boxes_of, greedy_overlaps, mask_overlap, union_masks
from mllm.registry import METRICS
from mllm.structures import Answer

RIGHT = 0.5
"""A box is right where its IoU is greater."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@METRICS.register_module(name="rec")
def rec(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Referring expression comprehension: `accuracy`, the share of boxes with IoU > 0.5, and their `mean_iou`.

    Where the reference has one box, the first one of the prediction is compared with it. Where it has several, they
    are paired one to one with the predicted ones, the pair with the highest IoU first, and a sample's score is the sum
    over its pairs divided by the number of predicted or true boxes, whichever is larger: boxes too many cost as much
    as boxes too few. `failed` counts predictions without a readable box, which score 0; `samples` those that were
    scored; `target_failed` the references without a box, which nothing can be compared with.
    """
    assert len(predictions) == len(references)
    right, overlaps = [], []
    failed = target_failed = 0
    for prediction, reference in zip(predictions, references, strict=True):
        found, wanted = boxes_of(prediction), boxes_of(reference)
        if not wanted:
            target_failed += 1
            continue
        failed += not found
        if len(wanted) == 1:
            found = found[:1]
        values = greedy_overlaps(found, wanted, box_iou)
        count = max(len(found), len(wanted))
        right.append(sum(value > RIGHT for value in values) / count)
        overlaps.append(sum(values) / count)
    return {
        "accuracy": _mean(right),
        "mean_iou": _mean(overlaps),
        "failed": failed,
        "target_failed": target_failed,
        "samples": len(right),
    }


@METRICS.register_module(name="res")
def res(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Referring expression segmentation: `cIoU`, `gIoU`, `Pr@0.5` to `Pr@0.9` and `box_accuracy@0.5`.

    The masks of one answer are united. `cIoU` is the sum of all intersections over the sum of all unions, so that
    large things weigh more; `gIoU` is the mean of the samples' IoU; `Pr@X` the share of samples with IoU > X.
    `box_accuracy@0.5` is the `accuracy` of the metric `rec` on the same samples; a mask without a box has the smallest
    box around it. `failed` counts predictions without a mask, which score 0 and whose reference counts in the union.

    A reference with a mask of no pixel, or without any mark, says that there is nothing to be found. It is no part of
    the figures above, which it would raise without any overlap: `no_target` counts these samples and
    `no_target_accuracy` is the share of them in which nothing was found (as in GRES, arXiv:2306.00968). A reference
    with marks but without a mask is counted in `target_failed` and left out.
    """
    assert len(predictions) == len(references)
    common, either, with_target = [], [], []
    silent = failed = target_failed = no_target = 0
    for prediction, reference in zip(predictions, references, strict=True):
        found, wanted = union_masks(prediction), union_masks(reference)
        if reference.marks and not wanted:
            target_failed += 1
        elif not any(mask.any() for mask in wanted.values()):
            no_target += 1
            silent += not any(mask.any() for mask in found.values())
        else:
            failed += not found
            intersection, union = mask_overlap(found, wanted)
            common.append(intersection)
            either.append(union)
            with_target.append((prediction, reference))
    ious = [part / whole for part, whole in zip(common, either, strict=True)]
    boxes = rec([pair[0] for pair in with_target], [pair[1] for pair in with_target])
    return {
        "cIoU": sum(common) / sum(either) if either else float("nan"),
        "gIoU": _mean(ious),
        **{f"Pr@{threshold}": _mean([iou > threshold for iou in ious]) for threshold in THRESHOLDS},
        "box_accuracy@0.5": boxes["accuracy"],
        "failed": failed,
        "target_failed": target_failed,
        "samples": len(ious),
        "no_target": no_target,
        **({"no_target_accuracy": silent / no_target} if no_target else {}),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
