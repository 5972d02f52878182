"""How far a box is from the true one: the distance of its corners, and what the two do not share."""

from __future__ import annotations

import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.objectives.base import Objective
from mllm.registry import OBJECTIVES
from mllm.structures import Context


@OBJECTIVES.register_module()
class BoxLoss(Objective):
    """L1 and GIoU between the boxes of a BoxHead and the true ones (PerceptionGPT, arXiv:2311.06612, section 3.3).

    An item is a box of an answer. `l1` weighs the mean distance of the four coordinates, as shares of what the model
    sees, `giou` weighs 1 - GIoU.
    """

    reads = "box"

    def __init__(self, weight: float | dict[str, float] = 1.0, l1: float = 1.0, giou: float = 1.0) -> None:
        super().__init__(weight)
        self.l1, self.giou = l1, giou

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Known boxes of each sample, [B]."""
        return known(targets, "boxes_known", "BoxHead").sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """The loss summed over each sample's known boxes, [B], fp32."""
        told = known(context.targets, "boxes_known", "BoxHead")
        if "box" not in context.student.heads:
            raise ConfigError("the objective BoxLoss needs model_args.heads with a BoxHead named 'box'")
        found, true = context.student.heads["box"].float(), context.targets["boxes"].float()
        # What is not known takes its own prediction as the truth: a loss of zero with a gradient of zero.
        true = torch.where(told[..., None], true, found.detach())
        loss_BM = self.l1 * (found - true).abs().mean(dim=-1) + self.giou * (1 - giou(found, true))
        return (loss_BM * told).sum(dim=1)


def known(targets: dict[str, Tensor], name: str, head: str) -> Tensor:
    """Which objects of a batch are supervised, [B, M]; raises `ConfigError` where the model has no such head."""
    if name not in targets:
        raise ConfigError(
            f"an objective learns from objects, but model_args.heads has no {head}: add one, or remove it"
        )
    return targets[name]


def giou(first: Tensor, second: Tensor) -> Tensor:
    """The generalized intersection over union [...] of boxes [..., 4] x1 y1 x2 y2 (Rezatofighi et al., CVPR 2019)."""
    tiny = torch.finfo(first.dtype).eps
    shared = _area(torch.max(first[..., :2], second[..., :2]), torch.min(first[..., 2:], second[..., 2:]))
    hull = _area(torch.min(first[..., :2], second[..., :2]), torch.max(first[..., 2:], second[..., 2:]))
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - shared
    return shared / (union + tiny) - (hull - union) / (hull + tiny)


def _area(upper_left: Tensor, lower_right: Tensor) -> Tensor:
    return (lower_right - upper_left).clamp_min(0).prod(dim=-1)
