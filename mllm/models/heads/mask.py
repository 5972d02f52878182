"""Head for masks: prediction from hidden states and image features, and embedding of a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mllm.models.heads.fusion import VisionShape
from mllm.models.heads.image_attention import ImageAttention
from mllm.models.heads.mlp import mlp
from mllm.registry import HEADS


@HEADS.register_module()
class MaskHead(nn.Module):
    """Prediction of masks by a decoder like that of SAM, and their embedding by a small convolutional network.

    PerceptionGPT (arXiv:2311.06612, section 3.2): a two-way transformer between the tokens of the object and the
    features of the image, upsampling by 4, and a hypernetwork that maps a token to the weights of a last 1 x 1
    convolution. The input is the hidden state that predicts the object token, as published; with `context` K, also the
    hidden states of the K - 1 tokens before it. Masks have `4 * grid` pixels per side. `threshold` is the smallest
    probability of a pixel in the mask. Computes in fp32.
    """

    predicts = "mask"
    """Name under which objectives read the predictions."""
    nonlinear = "it trains convolutions"
    """Reason why more than Linear layers are trained, for messages."""
    reads_image = True
    """It reads the layers of the vision tower."""

    def __init__(
        self,
        width: int,
        vision: VisionShape,
        dim: int = 256,
        depth: int = 2,
        heads: int = 8,
        threshold: float = 0.35,
        context: int = 1,
    ) -> None:
        super().__init__()
        self.grid, self.threshold = vision.grid, threshold
        # The names of the submodules are keys of saved files.
        self.look = ImageAttention(width, vision, dim=dim, depth=depth, heads=heads, context=context)
        self.upsample = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            nn.GroupNorm(1, dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.hypernetwork = mlp(dim, dim, dim // 8)
        self.writer = _mask_embedding(width, dim)

    @property
    def size(self) -> int:
        """Return S, the side of a mask in pixels."""
        return 4 * self.grid

    @property
    def context(self) -> int:
        """Return K, the number of hidden states per object."""
        return self.look.context

    def features(self, layers: Sequence[Tensor]) -> Tensor:
        """Return the features [V, N, dim] of V images from the output [V, N, D] of every vision layer."""
        with torch.autocast(layers[0].device.type, enabled=False):
            return self.look.features(layers)

    def predict(self, state_BMKD: Tensor, features_VND: Tensor, images_BM: Tensor) -> Tensor:
        """Return mask logits [B, M, S, S] from hidden states [B, M, K, D] of objects in images `images_BM`."""
        with torch.autocast(state_BMKD.device.type, enabled=False):
            token_XD, features_XND = self.look(state_BMKD, features_VND, images_BM)
            pixels_XCSS = self.upsample(features_XND.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
            weights_XC = self.hypernetwork(token_XD)
            logits = torch.einsum("xc,xchw->xhw", weights_XC, pixels_XCSS) / math.sqrt(weights_XC.shape[1])
            return logits.unflatten(0, images_BM.shape)

    def embed(self, masks_BMSS: Tensor) -> Tensor:
        """Return embeddings [B, M, D] of masks [B, M, S, S], in fp32."""
        with torch.autocast(masks_BMSS.device.type, enabled=False):
            images = 2 * masks_BMSS.float().flatten(0, 1)[:, None] - 1
            embedded: Tensor = self.writer(images)
            return embedded.unflatten(0, masks_BMSS.shape[:2])


class _Residual(nn.Module):
    """Residual block of two convolutions that halves the resolution."""

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

    def forward(self, image: Tensor) -> Tensor:
        """Map [X, inputs, H, W] to [X, outputs, H / 2, W / 2]."""
        return nn.functional.gelu(self.body(image) + self.shortcut(image))


def _mask_embedding(width: int, dim: int) -> nn.Sequential:
    """Return a residual network that maps a mask to an embedding."""
    channels = (1, dim // 8, dim // 4, dim // 2, dim)
    blocks = [_Residual(before, after) for before, after in zip(channels, channels[1:], strict=False)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * dim, width))
