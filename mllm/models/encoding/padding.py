"""Tensors of several samples put into one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joined_images(tensors: list[Tensor]) -> Tensor:
    """Tensors that begin with images, one after the other; what is smaller (fewer tiles) ends with zeros."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    joined = tensors[0].new_zeros(sum(len(tensor) for tensor in tensors), *sizes)
    start = 0
    for tensor in tensors:
        place = (slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))
        joined[place] = tensor
        start += len(tensor)
    return joined


def stacked(tensors: list[Tensor], length: int, fill: int, side: str) -> Tensor:
    """Tensors [L] of one meaning, stacked to [B, length]."""
    padded = tensors[0].new_full((len(tensors), length), fill)
    for row, tensor in zip(padded, tensors, strict=True):
        if side == "right":
            row[: len(tensor)] = tensor
        else:
            row[length - len(tensor) :] = tensor
    return padded


def joined_objects(samples: Sequence[dict[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors [M, ...] of `names`, padded to one M and stacked to [B, M, ...]; padding is 0 or position -1."""
    joined = {}
    for name in names:
        tensors = [sample[name] for sample in samples]
        most = max(len(tensor) for tensor in tensors)
        fill = -1 if name == "object_positions" else 0
        joined[name] = torch.stack(
            [torch.cat([tensor, tensor.new_full((most - len(tensor), *tensor.shape[1:]), fill)]) for tensor in tensors]
        )
    return joined
