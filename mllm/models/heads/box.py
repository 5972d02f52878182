"""Head for boxes: prediction from the hidden state before an object token, and embedding of a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mllm.errors import ConfigError
from mllm.models.heads.fusion import VisionShape
from mllm.models.heads.mlp import mlp
from mllm.models.heads.patch_attention import PatchAttention
from mllm.registry import HEADS


@HEADS.register_module()
class BoxHead(nn.Module):
    """Prediction and embedding of boxes by two networks of three layers (PerceptionGPT, arXiv:2311.06612, section 3.2).

    `width` is the width of the language model, `hidden` that of the hidden layers. The input is the hidden state, as
    published; with `outline=True` also the outline of the predicted mask, which needs a mask head. With `attention`,
    the width of an attention from the hidden state to the patches of the image, the box is predicted relative to the
    mean position of the attention, and the attended features are read as well: for models whose hidden states do not
    know places yet, such as those from scratch. Boxes are x1 y1 x2 y2 as fractions of the model's input; predictions
    may exceed [0, 1]. Computes in fp32.
    """

    predicts = "box"
    """Name under which objectives read the predictions."""
    nonlinear = "it trains norms and an embedding"
    """Reason why more than Linear layers are trained, for messages."""

    def __init__(
        self,
        width: int,
        hidden: int = 512,
        outline: bool = False,
        mask_size: int | None = None,
        vision: VisionShape | None = None,
        attention: int | None = None,
    ) -> None:
        super().__init__()
        if attention is not None and attention < 1:
            raise ConfigError(f"attention of a BoxHead is a width of at least 1, or None, not {attention}")
        if outline and mask_size is None:
            raise ConfigError(
                "a BoxHead with outline=True needs the predicted mask, but model_args.heads has no MaskHead: add one"
            )
        self.outline = outline
        inputs = width + (2 * mask_size if outline and mask_size else 0) + (attention + 4 if attention else 0)
        self.reader = mlp(inputs, hidden, 4)
        self.writer = mlp(4, hidden, width)
        last = self.reader[-1]
        assert isinstance(last, nn.Linear)
        # As published: the initial prediction is the central box with half the image's width and height.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.patch_attention: PatchAttention | None = None
        if attention is not None:
            assert vision is not None, "the builder provides the vision tower"
            self.patch_attention = PatchAttention(width, vision, attention)

    @property
    def reads_image(self) -> bool:
        """Return True if the head reads the layers of the vision tower."""
        return self.patch_attention is not None

    def features(self, layers: Sequence[Tensor]) -> Tensor:
        """Return the features [V, N, attention] of V images from the output [V, N, D] of every vision layer."""
        assert self.patch_attention is not None
        with torch.autocast(layers[0].device.type, enabled=False):
            return self.patch_attention.features(layers)

    def predict(
        self,
        state_BMD: Tensor,
        mask_BMSS: Tensor | None = None,
        features_VND: Tensor | None = None,
        images_BM: Tensor | None = None,
    ) -> Tensor:
        """Return boxes [B, M, 4] from hidden states [B, M, D].

        With `outline` also from the logits of the masks, and with `attention` from `features` of the images and the
        indices of the objects' images.
        """
        with torch.autocast(state_BMD.device.type, enabled=False):
            features = state_BMD.float()
            origin = None
            if self.patch_attention is not None:
                assert features_VND is not None and images_BM is not None
                attended, origin, spread = self.patch_attention(features, features_VND, images_BM)
                # Places are scaled to values of about 1, like the other inputs.
                features = torch.cat([features, attended, 4 * origin - 2, 4 * spread], dim=-1)
            if self.outline:
                assert mask_BMSS is not None
                # Detached: masks are trained by their own loss only.
                pixels = mask_BMSS.detach().float().sigmoid()
                features = torch.cat([features, 4 * pixels.amax(dim=-1) - 2, 4 * pixels.amax(dim=-2) - 2], dim=-1)
            center, size = self.reader(features).sigmoid().chunk(2, dim=-1)
            if origin is not None:
                center = center - 0.5 + origin
            # Not clipped to the image: a coordinate outside it would have no gradient.
            return torch.cat([center - size / 2, center + size / 2], dim=-1)

    def embed(self, boxes_BM4: Tensor) -> Tensor:
        """Return embeddings [B, M, D] of boxes [B, M, 4], in fp32."""
        with torch.autocast(boxes_BM4.device.type, enabled=False):
            embedded: Tensor = self.writer(2 * boxes_BM4.float() - 1)
            return embedded
