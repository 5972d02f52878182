"""A mask from an object's hidden state and the features of its image, and an embedding from a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mllm.models.heads.image_attention import Look
from mllm.models.heads.mlp import perceptron
from mllm.registry import HEADS


@HEADS.register_module()
class MaskHead(nn.Module):
    """Reads masks as SAM's decoder does, and writes them by a small convolutional network.

    PerceptionGPT (arXiv:2311.06612, section 3.2): a two-way transformer between the object's tokens and the image's
    features, upsampling by 4, and a hypernetwork that makes a token the weights of a last 1 x 1 convolution. As
    published the hidden state alone is read that predicts the object's token; with a `context` of K, those of the K - 1
    tokens before it too, whose words say what is meant. Masks are `4 * grid` pixels on each side. `threshold` is the
    least probability of a mask's pixel. Computes in fp32.
    """

    def __init__(
        self,
        width: int,
        vision_width: int,
        layers: int,
        grid: int,
        dim: int = 256,
        depth: int = 2,
        heads: int = 8,
        threshold: float = 0.35,
        context: int = 1,
    ) -> None:
        super().__init__()
        self.grid, self.threshold = grid, threshold
        self.look = Look(width, vision_width, layers, grid, dim, depth, heads, context)
        self.upsample = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            nn.GroupNorm(1, dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.hypernetwork = perceptron(dim, dim, dim // 8)
        self.writer = _mask_writer(width, dim)

    @property
    def size(self) -> int:
        """Pixels of a mask's side."""
        return 4 * self.grid

    @property
    def context(self) -> int:
        """Hidden states that are read of an object."""
        return self.look.context

    def features(self, layers: Sequence[Tensor]) -> Tensor:
        """What the head sees of V images, [V, N, dim], from every vision layer's output [V, N, D]."""
        with torch.autocast(layers[0].device.type, enabled=False):
            return self.look.features(layers)

    def predict(self, state_BMKD: Tensor, features_VND: Tensor, images_BM: Tensor) -> Tensor:
        """The masks' logits [B, M, S, S] of hidden states [B, M, K, D] that speak of images `images_BM`."""
        with torch.autocast(state_BMKD.device.type, enabled=False):
            token_XD, features_XND = self.look(state_BMKD, features_VND, images_BM)
            pixels_XCSS = self.upsample(features_XND.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
            weights_XC = self.hypernetwork(token_XD)
            logits = torch.einsum("xc,xchw->xhw", weights_XC, pixels_XCSS) / math.sqrt(weights_XC.shape[1])
            return logits.unflatten(0, images_BM.shape)

    def embed(self, masks_BMSS: Tensor) -> Tensor:
        """Embeddings [B, M, D] of masks, in fp32."""
        with torch.autocast(masks_BMSS.device.type, enabled=False):
            pictures = 2 * masks_BMSS.float().flatten(0, 1)[:, None] - 1
            written: Tensor = self.writer(pictures)
            return written.unflatten(0, masks_BMSS.shape[:2])


class _Residual(nn.Module):
    """Two convolutions that halve a picture, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
            nn.GroupNorm(1, outputs),
            nn.GELU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.GroupNorm(1, outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, picture: Tensor) -> Tensor:
        """[X, inputs, H, W] -> [X, outputs, H / 2, W / 2]."""
        return nn.functional.gelu(self.body(picture) + self.shortcut(picture))


def _mask_writer(width: int, dim: int) -> nn.Sequential:
    """A residual network from a mask to an embedding."""
    channels = (1, dim // 8, dim // 4, dim // 2, dim)
    blocks = [_Residual(before, after) for before, after in zip(channels, channels[1:], strict=False)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * dim, width))
