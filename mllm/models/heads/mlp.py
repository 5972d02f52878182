"""The small network that heads are made of."""

from __future__ import annotations

from torch import nn


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three Linear layers with GELU between them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)
    )
