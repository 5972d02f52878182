"""Attention between an object's tokens and an image's features, in both directions, as in SAM (arXiv:2304.02643, A)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TwoWayTransformer(nn.Module):
    """Tokens and features look at each other in `depth` layers, and the tokens at the features once more."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TwoWayLayer(dim, heads) for _ in range(depth))
        self.last = _Look(dim, heads)

    def forward(self, tokens_XTD: Tensor, features_XND: Tensor, positions_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [X, T, D] and features [X, N, D] of X objects, each with its own image's features."""
        asked = tokens_XTD
        # Tokens are to learn where something is, so places are part of what is looked at, not only of how it is found.
        features_XND = features_XND + positions_ND
        for layer in self.layers:
            tokens_XTD, features_XND = layer(tokens_XTD, features_XND, asked, positions_ND)
        tokens_XTD = self.last(tokens_XTD, tokens_XTD + asked, features_XND + positions_ND, features_XND)
        return tokens_XTD, features_XND


class _TwoWayLayer(nn.Module):
    """Tokens look at each other and at the features, think, and are looked at by the features."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.to_each_other = _Look(dim, heads)
        self.to_features = _Look(dim, heads)
        self.think = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.thought = nn.LayerNorm(dim)
        self.to_tokens = _Look(dim, heads)

    def forward(
        self, tokens_XTD: Tensor, features_XND: Tensor, asked_XTD: Tensor, positions_ND: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The tokens as they came in, `asked_XTD`, keep them apart as the positions do the features."""
        tokens, features = tokens_XTD, features_XND
        tokens = self.to_each_other(tokens, tokens + asked_XTD, tokens + asked_XTD, tokens)
        tokens = self.to_features(tokens, tokens + asked_XTD, features + positions_ND, features)
        tokens = self.thought(tokens + self.think(tokens))
        return tokens, self.to_tokens(features, features + positions_ND, tokens + asked_XTD, tokens)


class _Look(nn.Module):
    """What one side learns from the other by attention, added to it and normalized."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, before: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`before` [X, Q, D] and what its `queries` find in `values` [X, K, D]."""
        seen: Tensor = self.norm(before + self.attention(queries, keys, values, need_weights=False)[0])
        return seen


def positions(grid: int, dim: int, scale: float = 1.0) -> Tensor:
    """Fixed random Fourier features [grid * grid, dim] of places on a square, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    frequencies = scale * torch.randn(2, dim // 2, generator=generator)
    centers = (torch.arange(grid) + 0.5) / grid * 2 - 1
    places = torch.cartesian_prod(centers, centers)  # rows first, as patches are numbered
    angles = 2 * math.pi * places @ frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
