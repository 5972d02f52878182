"""Metrics of masks: Dice, IoU, Hausdorff distance and surface Dice."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from mllm.metrics.areas import union_masks
from mllm.metrics.base import SumMetric, reads
from mllm.metrics.packages import optional
from mllm.registry import METRICS
from mllm.structures import Answer

TOLERANCE = 2.0
"""Distance in pixels up to which surfaces agree in `nsd`."""


class MaskMetric(SumMetric):
    """Base of means over the images of samples. The masks of an answer in an image are united.

    An image in which neither answer nor reference has a pixel has the best value. An image in which only one of them
    has has the worst one; such an answer is failed if the reference has pixels. The values of a sample are averaged
    over its images.
    """

    columns = ("value", "samples")
    figure: str
    """Name of the figure."""
    best = 1.0
    """Value of two empty masks."""

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float] | None:
        """Return the mean over the images of a sample; None for a reference with marks that are no masks."""
        predicted, true = union_masks(prediction), union_masks(reference)
        if reference.marks and not true:
            return None
        self.failed += any(mask.any() for mask in true.values()) and not any(m.any() for m in predicted.values())
        values = [self._of_image(predicted.get(image), true.get(image)) for image in sorted({*predicted, *true})]
        return float(np.mean(values)) if values else self.best, 1

    def _of_image(self, predicted: np.ndarray | None, true: np.ndarray | None) -> float:
        has_pixels = [mask is not None and bool(mask.any()) for mask in (predicted, true)]
        if not any(has_pixels):
            return self.best
        if not all(has_pixels):
            mask = true if predicted is None else predicted
            assert mask is not None
            return self.worst(mask.shape)
        assert predicted is not None and true is not None
        return self.compare(predicted, true)

    def worst(self, shape: tuple[int, ...]) -> float:
        """Return the value of an image of this shape in which only one of the masks has pixels."""
        return 0.0

    @abstractmethod
    def compare(self, predicted: np.ndarray, true: np.ndarray) -> float:
        """Return the value of two masks [H, W] with pixels."""

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the mean."""
        return {self.figure: sums["value"] / sums["samples"]}


@METRICS.register_module(name="dice")
@reads("mask")
class Dice(MaskMetric):
    """Mean Dice coefficient of the samples, 0 to 1: 2 |A and B| / (|A| + |B|); see `MaskMetric` for empty masks."""

    figure = "dice"

    def compare(self, predicted: np.ndarray, true: np.ndarray) -> float:
        """Return the Dice coefficient."""
        return float(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))


@METRICS.register_module(name="iou")
@reads("mask")
class IoU(MaskMetric):
    """Mean intersection over union of the samples, 0 to 1; see `MaskMetric` for empty masks."""

    figure = "iou"

    def compare(self, predicted: np.ndarray, true: np.ndarray) -> float:
        """Return the intersection over the union."""
        return float((predicted & true).sum() / (predicted | true).sum())


@METRICS.register_module(name="hd95")
@reads("mask")
class HD95(MaskMetric):
    """Mean 95 % Hausdorff distance of the samples in pixels, by MONAI; lower is better.

    It is the larger of the two 95th percentiles of the distances from the surface of one mask to the other. If only one
    of the masks has pixels, the distance is the diagonal of the image.
    """

    figure = "hd95_px"
    best = 0.0
    packages = ("monai",)

    def worst(self, shape: tuple[int, ...]) -> float:
        """Return the diagonal of the image in pixels."""
        return math.hypot(*shape)

    def compare(self, predicted: np.ndarray, true: np.ndarray) -> float:
        """Return the distance in pixels."""
        function = optional("monai.metrics").compute_hausdorff_distance
        return float(function(_one_hot(predicted), _one_hot(true), include_background=False, percentile=95))


@METRICS.register_module(name="nsd")
@reads("mask")
class NSD(MaskMetric):
    """Mean normalized surface Dice of the samples at 2 pixels, 0 to 1, by MONAI (arXiv:1809.04430).

    It is the fraction of both surfaces that lies within 2 pixels of the other one; see `MaskMetric` for empty masks.
    """

    figure = "nsd@2px"
    packages = ("monai",)

    def compare(self, predicted: np.ndarray, true: np.ndarray) -> float:
        """Return the surface Dice."""
        function = optional("monai.metrics").compute_surface_dice
        masks = _one_hot(predicted), _one_hot(true)
        return float(function(*masks, class_thresholds=[TOLERANCE], include_background=False))


def _one_hot(mask: np.ndarray) -> object:
    """Return a mask as a tensor [1, 2, H, W] of background and object."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(mask)).bool()
    return torch.stack([~tensor, tensor])[None].float()
