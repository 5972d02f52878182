"""Attention of an object to the patches of its image: the attended features, and the place of the attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mllm.models.heads.fusion import LayerFusion, VisionShape


class PatchAttention(nn.Module):
    """Attention of one query per object, from its hidden state, to a learned mixture of the vision layers.

    `width` is the width of the language model, `dim` that of query and features. The place of the attention is its
    mean position (soft-argmax, arXiv:1603.09114) and its standard deviation along x and y, as fractions of the image.
    """

    def __init__(self, width: int, vision: VisionShape, dim: int) -> None:
        super().__init__()
        self.fusion = LayerFusion(vision.layers)
        self.norm = nn.LayerNorm(vision.width)
        self.feature_map = nn.Linear(vision.width, dim)
        self.query = nn.Linear(width, dim)
        centers = (torch.arange(vision.grid) + 0.5) / vision.grid
        rows_N, columns_N = torch.cartesian_prod(centers, centers).T  # rows first, the order of patches
        self.register_buffer("places_N2", torch.stack([columns_N, rows_N], dim=-1), persistent=False)

    def features(self, layers: Sequence[Tensor]) -> Tensor:
        """Return the features [V, N, dim] of V images from the output [V, N, D] of every vision layer."""
        mixed: Tensor = self.feature_map(self.norm(self.fusion([layer.float() for layer in layers])))
        return mixed

    def forward(self, state_BMD: Tensor, features_VND: Tensor, images_BM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return attended features [B, M, dim], mean position and standard deviation [B, M, 2] of the attention.

        `images_BM` are the indices of the objects' images among the V images.
        """
        features_BMND = features_VND[images_BM]
        scores_BMN = torch.einsum("bmd,bmnd->bmn", self.query(state_BMD), features_BMND)
        weights_BMN = (scores_BMN / math.sqrt(features_VND.shape[-1])).softmax(dim=-1)
        places_N2 = self.places_N2
        assert isinstance(places_N2, Tensor)
        mean_BM2 = weights_BMN @ places_N2
        square_BM2 = weights_BMN @ places_N2**2
        spread_BM2 = (square_BM2 - mean_BM2**2).clamp_min(1e-6).sqrt()
        return torch.einsum("bmn,bmnd->bmd", weights_BMN, features_BMND), mean_BM2, spread_BM2
