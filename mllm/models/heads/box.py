"""A box from the hidden state that predicts an object's token, and an embedding from a box."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mllm.errors import ConfigError
from mllm.models.heads.mlp import perceptron
from mllm.registry import HEADS


@HEADS.register_module()
class BoxHead(nn.Module):
    """Reads and writes boxes by two small networks of three layers (PerceptionGPT, arXiv:2311.06612, section 3.2).

    `width` is that of the language model, `hidden` that of the layers between. As published the hidden state alone is
    read; with `outline=True` the outline of the object's mask too, where there is a mask head. Boxes are x1 y1 x2 y2 as
    shares of what the model sees, in [0, 1] but for a side that is read too far out. Computes in fp32.
    """

    def __init__(self, width: int, hidden: int = 512, outline: bool = False, mask_size: int | None = None) -> None:
        super().__init__()
        if outline and mask_size is None:
            raise ConfigError(
                "a BoxHead with outline=True reads the mask, and model_args.heads has no MaskHead: add one"
            )
        self.outline = outline
        self.reader = perceptron(width + 2 * mask_size if outline and mask_size else width, hidden, 4)
        self.writer = perceptron(4, hidden, width)
        last = self.reader[-1]
        assert isinstance(last, nn.Linear)
        # As published: every box begins in the middle, half as wide and high as the image.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def predict(self, state_BMD: Tensor, mask_BMSS: Tensor | None = None) -> Tensor:
        """The boxes [B, M, 4] of hidden states [B, M, D] and, where it reads the outline, the masks' logits."""
        with torch.autocast(state_BMD.device.type, enabled=False):
            read = state_BMD.float()
            if self.outline:
                assert mask_BMSS is not None
                # Detached: masks are left to their own loss.
                pixels = mask_BMSS.detach().float().sigmoid()
                read = torch.cat([read, 4 * pixels.amax(dim=-1) - 2, 4 * pixels.amax(dim=-2) - 2], dim=-1)
            center, size = self.reader(read).sigmoid().chunk(2, dim=-1)
            # Not clipped to the image here: a side beyond it would have no gradient, and never come back.
            return torch.cat([center - size / 2, center + size / 2], dim=-1)

    def embed(self, boxes_BM4: Tensor) -> Tensor:
        """Embeddings [B, M, D] of boxes, in fp32."""
        with torch.autocast(boxes_BM4.device.type, enabled=False):
            written: Tensor = self.writer(2 * boxes_BM4.float() - 1)
            return written
