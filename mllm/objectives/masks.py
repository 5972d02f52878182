"""How far a mask is from the true one: pixel by pixel, and by what the two share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mllm.errors import ConfigError
from mllm.objectives.base import Objective
from mllm.objectives.boxes import known
from mllm.registry import OBJECTIVES
from mllm.structures import Context


@OBJECTIVES.register_module()
class MaskLoss(Objective):
    """Cross-entropy and Dice between the masks of a MaskHead and the true ones (PerceptionGPT, section 3.3).

    An item is a mask of an answer. `bce` weighs the mean binary cross-entropy of its pixels, `dice` weighs 1 - Dice,
    smoothed by one pixel, so that an empty mask has a loss too.
    """

    reads = "mask"

    def __init__(self, weight: float | dict[str, float] = 1.0, bce: float = 1.0, dice: float = 1.0) -> None:
        super().__init__(weight)
        self.bce, self.dice = bce, dice

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Known masks of each sample, [B]."""
        return known(targets, "masks_known", "MaskHead").sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """The loss summed over each sample's known masks, [B], fp32."""
        told = known(context.targets, "masks_known", "MaskHead")
        if "mask" not in context.student.heads:
            raise ConfigError("the objective MaskLoss needs model_args.heads with a MaskHead named 'mask'")
        logits, true = context.student.heads["mask"].float(), context.targets["masks"].float()
        pixels = binary_cross_entropy_with_logits(logits, true, reduction="none").mean(dim=(-2, -1))
        loss_BM = self.bce * pixels + self.dice * (1 - soft_dice(logits.sigmoid(), true))
        return torch.where(told, loss_BM, loss_BM * 0).sum(dim=1)


def soft_dice(found: Tensor, true: Tensor) -> Tensor:
    """Twice what two masks [..., H, W] of values in [0, 1] share, over their sizes (Milletari et al., 3DV 2016)."""
    shared = (found * true).sum(dim=(-2, -1))
    return (2 * shared + 1) / (found.sum(dim=(-2, -1)) + true.sum(dim=(-2, -1)) + 1)
