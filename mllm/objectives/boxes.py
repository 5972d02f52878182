"""Loss of predicted boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.objectives.base import Objective, check_factors
from mllm.registry import OBJECTIVES
from mllm.structures import Context


@OBJECTIVES.register_module()
class BoxLoss(Objective):
    """L1 and GIoU loss of the boxes of a BoxHead (PerceptionGPT, arXiv:2311.06612, section 3.3).

    An item is a box of an answer.

    Args:
        weight: Factor of this term.
        l1: Factor of the mean absolute error of the four coordinates, as fractions of the model's image.
        giou: Factor of 1 - GIoU.
    """

    reads = "box"

    def __init__(self, weight: float | dict[str, float] = 1.0, l1: float = 1.0, giou: float = 1.0) -> None:
        super().__init__(weight)
        check_factors("the factors l1 and giou of BoxLoss", l1, giou)
        self.l1, self.giou = l1, giou

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Return the number of known boxes of each sample, [B]."""
        return known_objects(targets, "boxes_known", "BoxHead").sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """Return the loss summed over the known boxes of each sample, [B], fp32."""
        known_BM = known_objects(context.targets, "boxes_known", "BoxHead")
        if "box" not in context.student.heads:
            raise ConfigError("the objective BoxLoss needs model_args.heads with a BoxHead named 'box'")
        predictions, boxes = context.student.heads["box"].float(), context.targets["boxes"].float()
        # An unknown box is replaced by its prediction: loss and gradient are zero.
        boxes = torch.where(known_BM[..., None], boxes, predictions.detach())
        loss_BM = self.l1 * (predictions - boxes).abs().mean(dim=-1) + self.giou * (1 - giou(predictions, boxes))
        return (loss_BM * known_BM).sum(dim=1)


def known_objects(targets: dict[str, Tensor], name: str, head: str) -> Tensor:
    """Return the mask of supervised objects, [B, M]. Raise `ConfigError` if the model has no such head."""
    if name not in targets:
        raise ConfigError(f"model_args.heads has no {head}, which an objective needs: add one, or remove the objective")
    return targets[name]


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalized IoU [...] of boxes [..., 4], x1 y1 x2 y2 (Rezatofighi et al., CVPR 2019)."""
    tiny = torch.finfo(first.dtype).eps
    intersection = _area(torch.max(first[..., :2], second[..., :2]), torch.min(first[..., 2:], second[..., 2:]))
    hull = _area(torch.min(first[..., :2], second[..., :2]), torch.max(first[..., 2:], second[..., 2:]))
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - intersection
    return intersection / (union + tiny) - (hull - union) / (hull + tiny)


def _area(upper_left: Tensor, lower_right: Tensor) -> Tensor:
    return (lower_right - upper_left).clamp_min(0).prod(dim=-1)
