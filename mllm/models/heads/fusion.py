"""Learned mixture of the layers of a vision tower (PerceptionGPT, arXiv:2311.06612, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class VisionShape:
    """Shape of the outputs of a vision tower: [V, grid * grid, width] for V images, from each of `layers` layers."""

    width: int
    layers: int
    grid: int
    """Patches per row and per column of an image."""


class LayerFusion(nn.Module):
    """Weighted sum of layer outputs. The weights are the softmax of a learned coefficient per layer, equal at first."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(layers))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Return the mixture, with the shape and dtype of each tensor in `layers`."""
        assert len(layers) == len(self.coefficients)
        weights = self.coefficients.softmax(dim=0).to(layers[0].dtype)
        mixed = layers[0] * weights[0]
        for layer, weight in zip(layers[1:], weights[1:], strict=True):
            mixed = mixed + layer * weight
        return mixed
