"""Supervised tokens of a batch: their positions, and the removal of the supervision."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mllm.structures import IGNORE, Batch

if TYPE_CHECKING:
    from torch import Tensor

PLACES = "_places"
"""End of the names of targets with the places of supervised labels."""


def with_places(batch: Batch) -> Batch:
    """Return a batch on the host whose targets have the places of their supervised labels, too.

    On a GPU, an update would wait for the device to know their number.
    """
    labels = {name: tensor for name, tensor in batch.targets.items() if name.endswith("labels")}
    places = {name + PLACES: _found(tensor) for name, tensor in labels.items()}
    return replace(batch, targets=batch.targets | places)


def places_of(targets: dict[str, Tensor], name: str = "labels") -> tuple[Tensor, Tensor]:
    """Return sample [T] and column [T] of the states that predict the supervised labels, one column before these."""
    places = targets.get(name + PLACES)
    sample, column = (_found(targets[name]) if places is None else places).unbind()
    return sample, column


def unsupervised(targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of `targets` without supervision: no labels, no known boxes, masks, measures or views."""
    masked = dict(targets)
    for name, tensor in targets.items():
        if name.endswith("labels"):
            masked[name] = tensor.new_full(tensor.shape, IGNORE)
        elif name.endswith(PLACES):
            masked[name] = tensor[:, :0]
        elif name.endswith("_known"):
            masked[name] = tensor.new_zeros(tensor.shape)
    return masked


def _found(labels_BL: Tensor) -> Tensor:
    """Return sample and column [2, T] of the states that predict supervised labels."""
    return (labels_BL[:, 1:] != IGNORE).nonzero().T
