"""Metrics of masks: Dice, IoU, Hausdorff distance and surface Dice."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from mllm.metrics.areas import union_masks
from mllm.metrics.base import SumMetric, reads
from mllm.metrics.packages import optional
from mllm.registry import METRICS
from mllm.structures import Answer, Spacing

TOLERANCE = 2.0
"""Distance in mm or pixels up to which surfaces agree in `nsd`."""
_PIXEL: Spacing = (1.0, 1.0)
"""Sides of a pixel in pixels."""


class MaskMetric(SumMetric):
    """Base of means over the images of samples. The masks of an answer in an image are united.

    An image in which neither answer nor reference has a pixel has the best value. An image in which only one of them
    has has the worst one; such an answer is failed if the reference has pixels. The values of a sample are averaged
    over its images.
    """

    best = 1.0
    """Value of two empty masks."""

    def mean_over_images(self, prediction: Answer, reference: Answer, spacings: Sequence[Spacing] = ()) -> float | None:
        """Return the mean over the images of a sample; None for a reference with marks that are no masks.

        Args:
            prediction: The predicted answer.
            reference: The reference.
            spacings: Width and height of a pixel of each image in the unit of distances. Empty: pixels.
        """
        predicted, true = union_masks(prediction), union_masks(reference)
        if reference.marks and not true:
            return None
        self.failed += any(mask.any() for mask in true.values()) and not any(m.any() for m in predicted.values())
        values = [
            self._of_image(predicted.get(image), true.get(image), spacings[image] if spacings else _PIXEL)
            for image in sorted({*predicted, *true})
        ]
        return float(np.mean(values)) if values else self.best

    def _of_image(self, predicted: np.ndarray | None, true: np.ndarray | None, spacing: Spacing) -> float:
        has_pixels = [mask is not None and bool(mask.any()) for mask in (predicted, true)]
        if not any(has_pixels):
            return self.best
        if not all(has_pixels):
            mask = true if predicted is None else predicted
            assert mask is not None
            return self.worst(mask.shape, spacing)
        assert predicted is not None and true is not None
        return self.compare(predicted, true, spacing)

    def worst(self, shape: tuple[int, ...], spacing: Spacing) -> float:
        """Return the value of an image of this shape in which only one of the masks has pixels."""
        return 0.0

    @abstractmethod
    def compare(self, predicted: np.ndarray, true: np.ndarray, spacing: Spacing) -> float:
        """Return the value of two masks [H, W] with pixels; `spacing` is the width and height of a pixel."""


class OverlapMetric(MaskMetric):
    """Base of metrics that count pixels."""

    columns = ("value", "samples")
    figure: str
    """Name of the figure."""

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float] | None:
        """Return the mean over the images of a sample."""
        value = self.mean_over_images(prediction, reference)
        return None if value is None else (value, 1)

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the mean."""
        return {self.figure: sums["value"] / sums["samples"]}


class DistanceMetric(MaskMetric):
    """Base of metrics of distances, in mm for samples of which all images have a pixel spacing, in pixels for others.

    Samples of both kinds have a figure for each unit. They are never averaged.
    """

    columns = ("mm", "samples_mm", "px", "samples_px")
    figure_names: ClassVar[Mapping[str, str]]
    """Unit, 'mm' or 'px' -> name of the figure."""

    def __init__(self) -> None:
        super().__init__()
        self.samples_of = {"mm": 0, "px": 0}
        """Number of scored samples by unit."""

    def values(self, prediction: Answer, reference: Answer) -> Sequence[float] | None:
        """Return the mean over the images of a sample and 1 in the columns of its unit, 0 in the others."""
        known = [spacing for spacing in reference.spacings if spacing is not None]
        in_mm = bool(known) and len(known) == len(reference.spacings)
        value = self.mean_over_images(prediction, reference, known if in_mm else ())
        if value is None:
            return None
        self.samples_of["mm" if in_mm else "px"] += 1
        return (value, 1, 0, 0) if in_mm else (0, 0, value, 1)

    def of_sums(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the mean of the samples of each unit."""
        used = [unit for unit, count in self.samples_of.items() if count] or ["px"]
        return {self.figure_names[unit]: sums[unit] / sums[f"samples_{unit}"] for unit in used}

    def counts(self) -> dict[str, float]:
        """Return the number of unreadable answers and of scored samples, also by unit if there are two."""
        by_unit = {f"samples_{unit}": count for unit, count in self.samples_of.items()}
        return {**super().counts(), **(by_unit if all(by_unit.values()) else {})}


@METRICS.register_module(name="dice")
@reads("mask")
class Dice(OverlapMetric):
    """Mean Dice coefficient of the samples, 0 to 1: 2 |A and B| / (|A| + |B|); see `MaskMetric` for empty masks."""

    figure = "dice"

    def compare(self, predicted: np.ndarray, true: np.ndarray, spacing: Spacing) -> float:
        """Return the Dice coefficient."""
        return float(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))


@METRICS.register_module(name="iou")
@reads("mask")
class IoU(OverlapMetric):
    """Mean intersection over union of the samples, 0 to 1; see `MaskMetric` for empty masks."""

    figure = "iou"

    def compare(self, predicted: np.ndarray, true: np.ndarray, spacing: Spacing) -> float:
        """Return the intersection over the union."""
        return float((predicted & true).sum() / (predicted | true).sum())


@METRICS.register_module(name="hd95")
@reads("mask")
class HD95(DistanceMetric):
    """Mean 95 % Hausdorff distance of the samples, by MONAI; lower is better. `DistanceMetric` defines the unit.

    It is the larger of the two 95th percentiles of the distances from the surface of one mask to the other. If only one
    of the masks has pixels, the distance is the diagonal of the image.
    """

    figure_names = {"mm": "hd95_mm", "px": "hd95_px"}
    best = 0.0
    packages = ("monai",)

    def worst(self, shape: tuple[int, ...], spacing: Spacing) -> float:
        """Return the diagonal of the image in the unit of the spacing."""
        height, width = shape
        return math.hypot(width * spacing[0], height * spacing[1])

    def compare(self, predicted: np.ndarray, true: np.ndarray, spacing: Spacing) -> float:
        """Return the distance in the unit of the spacing."""
        function = optional("monai.metrics").compute_hausdorff_distance
        masks = _one_hot(predicted), _one_hot(true)
        return float(function(*masks, include_background=False, percentile=95, spacing=spacing[::-1]))


@METRICS.register_module(name="nsd")
@reads("mask")
class NSD(DistanceMetric):
    """Mean normalized surface Dice of the samples at 2 mm, or at 2 pixels, 0 to 1, by MONAI (arXiv:1809.04430).

    It is the fraction of the edge pixels of both masks that lie within 2 mm of the edge of the other one, or within 2
    pixels if the spacing is unknown; `DistanceMetric` defines the unit. See `MaskMetric` for empty masks.
    """

    figure_names = {"mm": "nsd@2mm", "px": "nsd@2px"}
    packages = ("monai",)

    def compare(self, predicted: np.ndarray, true: np.ndarray, spacing: Spacing) -> float:
        """Return the surface Dice."""
        function = optional("monai.metrics").compute_surface_dice
        masks = _one_hot(predicted), _one_hot(true)
        thresholds = [TOLERANCE]
        return float(function(*masks, class_thresholds=thresholds, include_background=False, spacing=spacing[::-1]))


def _one_hot(mask: np.ndarray) -> object:
    """Return a mask as a tensor [1, 2, H, W] of background and object."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(mask)).bool()
    return torch.stack([~tensor, tensor])[None].float()
