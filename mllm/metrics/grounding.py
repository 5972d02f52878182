"""Metrics of referring expression comprehension and segmentation.

Boxes and masks are compared in pixels of the original image. Marks in different images do not overlap. A prediction
without a readable box or mask has an overlap of 0 and is counted in `failed`. Boxes that a question names are not part
of an answer and are not scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mllm.metrics.areas import box_iou, boxes_of, greedy_overlaps, mask_overlap, union_masks
from mllm.metrics.base import SumMetric, reads
from mllm.registry import METRICS
from mllm.structures import Answer

CORRECT_IOU = 0.5
"""A box is correct if its IoU is greater."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def box_scores(prediction: Answer, reference: Answer) -> tuple[float, float] | None:
    """Return accuracy and mean IoU of the boxes of a sample; None for a reference without a box.

    A reference with one box is compared with the first predicted box. Several boxes are matched one to one, the pair
    with the largest IoU first, and the scores are sums over the pairs divided by the larger number of boxes, so that
    surplus boxes cost as much as missing ones.
    """
    predicted, true = boxes_of(prediction), boxes_of(reference)
    if not true:
        return None
    if len(true) == 1:
        predicted = predicted[:1]
    values = greedy_overlaps(predicted, true, box_iou)
    count = max(len(predicted), len(true))
    return sum(value > CORRECT_IOU for value in values) / count, sum(values) / count


@METRICS.register_module(name="rec")
@reads("box")
class Rec(SumMetric):
    """Accuracy and mean IoU of referring expression comprehension; see `box_scores` for several boxes.

    Figures: `accuracy` (IoU > 0.5), `mean_iou`, `failed` (predictions without a readable box; their score is 0),
    `target_failed` (references without a box; they are not scored) and `samples` (scored samples).
    """

    columns = ("accuracy", "iou", "samples")

    def __init__(self) -> None:
        super().__init__()
        self.target_failed = 0
        """Number of references without a box."""

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float] | None:
        """Return accuracy and mean IoU of a sample."""
        scores = box_scores(prediction, reference)
        if scores is None:
            self.target_failed += 1
            return None
        self.failed += not boxes_of(prediction)
        return *scores, 1

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the means."""
        return {"accuracy": sums["accuracy"] / sums["samples"], "mean_iou": sums["iou"] / sums["samples"]}

    def counts(self) -> dict[str, float]:
        """Return the numbers of failed predictions, of references without a box, and of scored samples."""
        return {"failed": self.failed, "target_failed": self.target_failed, "samples": self.samples}


@METRICS.register_module(name="res")
@reads("mask")
class Res(SumMetric):
    """IoU and precision of referring expression segmentation.

    The masks of an answer are united. A reference with an empty mask or without marks means that there is no target.
    Such samples are counted separately (as in GRES, arXiv:2306.00968).

    Figures: `cIoU`: sum of all intersections over the sum of all unions. `gIoU`: mean IoU of the samples. `Pr@0.5` to
    `Pr@0.9`: fraction of samples with a larger IoU. `box_accuracy@0.5`: `accuracy` of `rec` on the same samples, with
    bounding boxes of masks. `failed`: predictions without a mask; their IoU is 0. `target_failed`: references with
    marks but no mask; they are not scored. `samples`: scored samples with a target. `no_target`: samples without a
    target. `no_target_accuracy`: fraction of these with an empty prediction.
    """

    columns = ("intersection", "union", "iou", *map(str, THRESHOLDS), "box", "samples", "no_target", "empty")

    def __init__(self) -> None:
        super().__init__()
        self.target_failed = self.no_target = 0

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float] | None:
        """Return the overlap of the masks of a sample."""
        predicted, true = union_masks(prediction), union_masks(reference)
        if reference.marks and not true:
            self.target_failed += 1
            return None
        if not any(mask.any() for mask in true.values()):
            self.no_target += 1
            is_empty = not any(mask.any() for mask in predicted.values())
            return *[0.0] * (len(self.columns) - 2), 1, is_empty
        self.failed += not predicted
        intersection, union = mask_overlap(predicted, true)
        iou = intersection / union
        boxes = box_scores(prediction, reference)
        assert boxes is not None, "a mask with a pixel has a bounding box"
        return intersection, union, iou, *(iou > threshold for threshold in THRESHOLDS), boxes[0], 1, 0, 0

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the figures."""
        count = sums["samples"]
        figures = {
            "cIoU": sums["intersection"] / sums["union"],
            "gIoU": sums["iou"] / count,
            **{f"Pr@{threshold}": sums[str(threshold)] / count for threshold in THRESHOLDS},
            "box_accuracy@0.5": sums["box"] / count,
        }
        return figures | ({"no_target_accuracy": sums["empty"] / sums["no_target"]} if self.no_target else {})

    def counts(self) -> dict[str, float]:
        """Return the numbers of failed predictions and references, and of samples with and without a target."""
        return {
            "failed": self.failed,
            "target_failed": self.target_failed,
            "samples": self.samples - self.no_target,
            "no_target": self.no_target,
        }
