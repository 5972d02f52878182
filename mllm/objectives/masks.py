"""Loss of predicted masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mllm.errors import ConfigError
from mllm.objectives.base import Objective, check_factors
from mllm.objectives.boxes import known_objects
from mllm.registry import OBJECTIVES
from mllm.structures import Context


@OBJECTIVES.register_module()
class MaskLoss(Objective):
    """Cross-entropy and Dice loss of the masks of a MaskHead (PerceptionGPT, arXiv:2311.06612, section 3.3).

    An item is a mask of an answer.

    Args:
        weight: Factor of this term.
        bce: Factor of the mean binary cross-entropy over pixels.
        dice: Factor of 1 - Dice, smoothed by one pixel, so that it is defined for an empty mask.
    """

    reads = "mask"

    def __init__(self, weight: float | dict[str, float] = 1.0, bce: float = 1.0, dice: float = 1.0) -> None:
        super().__init__(weight)
        check_factors("the factors bce and dice of MaskLoss", bce, dice)
        self.bce, self.dice = bce, dice

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Return the number of known masks of each sample, [B]."""
        return known_objects(targets, "masks_known", "MaskHead").sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """Return the loss summed over the known masks of each sample, [B], fp32."""
        known_BM = known_objects(context.targets, "masks_known", "MaskHead")
        if "mask" not in context.student.heads:
            raise ConfigError("the objective MaskLoss needs model_args.heads with a MaskHead named 'mask'")
        logits, masks = context.student.heads["mask"].float(), context.targets["masks"].float()
        pixels = binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=(-2, -1))
        loss_BM = self.bce * pixels + self.dice * (1 - soft_dice(logits.sigmoid(), masks))
        return torch.where(known_BM, loss_BM, loss_BM * 0).sum(dim=1)


def soft_dice(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the Dice coefficient [...] of masks [..., H, W] with values in [0, 1] (Milletari et al., 3DV 2016)."""
    intersection = (predictions * targets).sum(dim=(-2, -1))
    return (2 * intersection + 1) / (predictions.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1)) + 1)
