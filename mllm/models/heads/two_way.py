"""Two-way attention between object tokens and image features, as in SAM (arXiv:2304.02643, appendix A)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TwoWayTransformer(nn.Module):
    """`depth` layers of two-way attention, and a last attention from tokens to features."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TwoWayLayer(dim, heads) for _ in range(depth))
        self.last = _CrossAttention(dim, heads)

    def forward(self, tokens_XTD: Tensor, features_XND: Tensor, positions_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return updated tokens [X, T, D] and features [X, N, D] of X objects, each with the features of its image."""
        queries = tokens_XTD
        # Tokens must learn locations, so positions are added to the values too, not only to queries and keys.
        features_XND = features_XND + positions_ND
        for layer in self.layers:
            tokens_XTD, features_XND = layer(tokens_XTD, features_XND, queries, positions_ND)
        tokens_XTD = self.last(tokens_XTD, tokens_XTD + queries, features_XND + positions_ND, features_XND)
        return tokens_XTD, features_XND


class _TwoWayLayer(nn.Module):
    """Self-attention of tokens, attention to features, an MLP, and attention from features to tokens.

    The names of the submodules are keys of saved files.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.to_each_other = _CrossAttention(dim, heads)
        self.to_features = _CrossAttention(dim, heads)
        self.think = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.thought = nn.LayerNorm(dim)
        self.to_tokens = _CrossAttention(dim, heads)

    def forward(
        self, tokens_XTD: Tensor, features_XND: Tensor, queries_XTD: Tensor, positions_ND: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return updated tokens and features. The initial tokens `queries_XTD` serve as positions of the tokens."""
        tokens, features = tokens_XTD, features_XND
        tokens = self.to_each_other(tokens, tokens + queries_XTD, tokens + queries_XTD, tokens)
        tokens = self.to_features(tokens, tokens + queries_XTD, features + positions_ND, features)
        tokens = self.thought(tokens + self.think(tokens))
        return tokens, self.to_tokens(features, features + positions_ND, tokens + queries_XTD, tokens)


class _CrossAttention(nn.Module):
    """Attention with a residual connection and LayerNorm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, residual: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return `residual` [X, Q, D] plus the attention of `queries` [X, Q, D] to `values` [X, K, D], normalized."""
        output: Tensor = self.norm(residual + self.attention(queries, keys, values, need_weights=False)[0])
        return output


def positions(grid: int, dim: int, scale: float = 1.0) -> Tensor:
    """Return fixed random Fourier features [grid * grid, dim] of positions on a square, equal in every process."""
    generator = torch.Generator().manual_seed(0)
    frequencies = scale * torch.randn(2, dim // 2, generator=generator)
    centers = (torch.arange(grid) + 0.5) / grid * 2 - 1
    points = torch.cartesian_prod(centers, centers)  # rows first, the order of patches
    angles = 2 * math.pi * points @ frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
