"""Attention between the hidden states of an object and a learned mixture of the vision layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mllm.errors import ConfigError
from mllm.models.heads.fusion import LayerFusion, VisionShape
from mllm.models.heads.mlp import mlp
from mllm.models.heads.two_way import TwoWayTransformer, positions

TOKENS = 3
"""Number of tokens computed from the last hidden state of an object, in addition to the output token."""


class ImageAttention(nn.Module):
    """Two-way attention between the hidden states of an object and the features of its image, of width `dim`.

    The features are a learned mixture of the layers of the vision tower. `width` is the width of the language model,
    `context` the number K of its hidden states per object.
    """

    def __init__(self, width: int, vision: VisionShape, *, dim: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        if context < 1:
            raise ConfigError(
                f"context of a MaskHead must be at least 1 (the state that predicts the object's token), not {context}"
            )
        self.dim, self.context = dim, context
        self.fusion = LayerFusion(vision.layers)
        self.norm = nn.LayerNorm(vision.width)
        self.feature_map = nn.Linear(vision.width, dim)
        self.token_map = mlp(width, dim, TOKENS * dim)
        self.words = _ContextTokens(width, dim, context - 1) if context > 1 else None
        self.read_token = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        self.transformer = TwoWayTransformer(dim, depth, heads)
        self.register_buffer("positions_ND", positions(vision.grid, dim), persistent=False)

    def features(self, layers: Sequence[Tensor]) -> Tensor:
        """Return the features [V, N, dim] of V images from the output [V, N, D] of every vision layer."""
        mixed: Tensor = self.feature_map(self.norm(self.fusion([layer.float() for layer in layers])))
        return mixed

    def forward(self, state_BMKD: Tensor, features_VND: Tensor, images_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return output tokens [X, dim] and features [X, N, dim] of X = B M objects in images `images_BM`.

        The last of the K hidden states of an object predicts its token.
        """
        state_XKD = state_BMKD.float().flatten(0, 1)
        spread_XTD = self.token_map(state_XKD[:, -1]).unflatten(1, (TOKENS, self.dim))
        parts = [self.read_token.expand(len(spread_XTD), 1, -1), spread_XTD]
        if self.words is not None:
            parts.append(self.words(state_XKD[:, :-1]))
        tokens_XTD = torch.cat(parts, dim=1)
        positions_ND = self.positions_ND
        assert isinstance(positions_ND, Tensor)
        features_XND = features_VND[images_BM.flatten()]
        tokens_XTD, features_XND = self.transformer(tokens_XTD, features_XND, positions_ND)
        return tokens_XTD[:, 0], features_XND


class _ContextTokens(nn.Module):
    """Tokens of the hidden states before the last one, each with a learned embedding of its distance."""

    def __init__(self, width: int, dim: int, count: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, dim)
        self.places_KD = nn.Parameter(torch.randn(count, dim) / math.sqrt(dim))

    def forward(self, state_XKD: Tensor) -> Tensor:
        """Return tokens [X, K - 1, dim] of hidden states [X, K - 1, width]."""
        tokens: Tensor = self.map(state_XKD) + self.places_KD
        return tokens
