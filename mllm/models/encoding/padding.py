"""Stacking and padding of the tensors of several samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joined_images(tensors: list[Tensor], fill: int = 0) -> Tensor:
    """Return the concatenation of tensors [N, ...] of N images. Smaller ones (fewer tiles) are padded with `fill`."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    joined = tensors[0].new_full((sum(len(tensor) for tensor in tensors), *sizes), fill)
    start = 0
    for tensor in tensors:
        region = (slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))
        joined[region] = tensor
        start += len(tensor)
    return joined


def stacked(tensors: list[Tensor], length: int, fill: int, side: str) -> Tensor:
    """Return tensors [L, ...] padded with `fill` on `side` and stacked to [B, length, ...]."""
    padded = tensors[0].new_full((len(tensors), length, *tensors[0].shape[1:]), fill)
    for row, tensor in zip(padded, tensors, strict=True):
        if side == "right":
            row[: len(tensor)] = tensor
        else:
            row[length - len(tensor) :] = tensor
    return padded


def joined_objects(samples: Sequence[dict[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors [M, ...] of `names`, padded and stacked to [B, M, ...]. Padding is 0, of positions -1."""
    joined = {}
    for name in names:
        tensors = [sample[name] for sample in samples]
        longest = max(len(tensor) for tensor in tensors)
        fill = -1 if name == "object_positions" else 0
        joined[name] = torch.stack(
            [
                torch.cat([tensor, tensor.new_full((longest - len(tensor), *tensor.shape[1:]), fill)])
                for tensor in tensors
            ]
        )
    return joined
