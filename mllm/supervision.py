"""Removal of the supervision from the targets of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mllm.structures import IGNORE

if TYPE_CHECKING:
    from torch import Tensor


def unsupervised(targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of `targets` without supervision: no labels, no known boxes, masks, measures or views."""
    masked = dict(targets)
    for name, tensor in targets.items():
        if name.endswith("labels"):
            masked[name] = tensor.new_full(tensor.shape, IGNORE)
        elif name.endswith("_known"):
            masked[name] = tensor.new_zeros(tensor.shape)
    return masked
