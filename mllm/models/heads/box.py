"""Head for boxes: prediction from the hidden state before an object token, and embedding of a box."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mllm.errors import ConfigError
from mllm.models.heads.mlp import mlp
from mllm.registry import HEADS


@HEADS.register_module()
class BoxHead(nn.Module):
    """Prediction and embedding of boxes by two networks of three layers (PerceptionGPT, arXiv:2311.06612, section 3.2).

    `width` is the width of the language model, `hidden` that of the hidden layers. The input is the hidden state, as
    published; with `outline=True` also the outline of the predicted mask, which needs a mask head. Boxes are x1 y1 x2
    y2 as fractions of the model's input; predictions may exceed [0, 1]. Computes in fp32.
    """

    predicts = "box"
    """Name under which objectives read the predictions."""
    nonlinear = "it trains norms and an embedding"
    """Reason why more than Linear layers are trained, for messages."""

    def __init__(self, width: int, hidden: int = 512, outline: bool = False, mask_size: int | None = None) -> None:
        super().__init__()
        if outline and mask_size is None:
            raise ConfigError(
                "a BoxHead with outline=True needs the predicted mask, but model_args.heads has no MaskHead: add one"
            )
        self.outline = outline
        self.reader = mlp(width + 2 * mask_size if outline and mask_size else width, hidden, 4)
        self.writer = mlp(4, hidden, width)
        last = self.reader[-1]
        assert isinstance(last, nn.Linear)
        # As published: the initial prediction is the central box with half the image's width and height.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def predict(self, state_BMD: Tensor, mask_BMSS: Tensor | None = None) -> Tensor:
        """Return boxes [B, M, 4] from hidden states [B, M, D] and, with `outline`, the logits of the masks."""
        with torch.autocast(state_BMD.device.type, enabled=False):
            features = state_BMD.float()
            if self.outline:
                assert mask_BMSS is not None
                # Detached: masks are trained by their own loss only.
                pixels = mask_BMSS.detach().float().sigmoid()
                features = torch.cat([features, 4 * pixels.amax(dim=-1) - 2, 4 * pixels.amax(dim=-2) - 2], dim=-1)
            center, size = self.reader(features).sigmoid().chunk(2, dim=-1)
            # Not clipped to the image: a coordinate outside it would have no gradient.
            return torch.cat([center - size / 2, center + size / 2], dim=-1)

    def embed(self, boxes_BM4: Tensor) -> Tensor:
        """Return embeddings [B, M, D] of boxes [B, M, 4], in fp32."""
        with torch.autocast(boxes_BM4.device.type, enabled=False):
            embedded: Tensor = self.writer(2 * boxes_BM4.float() - 1)
            return embedded
