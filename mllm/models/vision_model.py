"""Model that predicts measures from named views of one patient, without a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mllm.models.backbone.taps import Taps, tap_paths
from mllm.models.backbone.vision_part import skeleton
from mllm.models.heads import RegressionHead
from mllm.models.trainable_model import TrainableModel
from mllm.structures import Outputs


class VisionModel(TrainableModel):
    """The vision part of a model, with an optional head that predicts measures.

    `layers` is the module path of the tower's sequence of layers, `side` the side of an image in pixels.
    """

    generates_text = False

    def __init__(
        self,
        backbone: nn.Module,
        towers: dict[str, str],
        layers: str,
        *,
        side: int,
        head: RegressionHead | None = None,
    ) -> None:
        super().__init__(backbone, towers, {} if head is None else {"measures": head})
        self.layers, self.side = layers, side
        self.separate_images = False
        """Run every image on its own, so that its features do not depend on the batch, not even in the last bit."""
        self._taps: Taps | None = None

    @property
    def head(self) -> RegressionHead | None:
        """Return the head that predicts measures, or None."""
        head = dict(self.heads.items()).get("measures")
        assert head is None or isinstance(head, RegressionHead)
        return head

    def freeze_as_teacher(self) -> None:
        """Freeze all parameters and run every image on its own, so that cached features equal computed ones."""
        super().freeze_as_teacher()
        self.separate_images = True

    def fit_measures(self, known: Mapping[str, Sequence[float]]) -> None:
        """Set mean and standard deviation of the measure head from the known values of the training split."""
        if self.head is not None:
            self.head.normalize(known)

    def tap(self, layers: Sequence[int | str] | None, count: int, grid: int) -> list[tuple[str, int]]:
        """Record the outputs of layers from now on, see `Taps`. Return their paths and widths."""
        paths = tap_paths(self.pretrained, self.layers, layers, count)
        self._taps = Taps(self.pretrained, paths, grid)
        empty: Any = skeleton(self.pretrained)
        with Taps(empty, paths, grid).recorded() as taps:
            empty.get_image_features(torch.zeros(1, 3, self.side, self.side, device="meta"))
            outputs = taps()
        widths = [(path, outputs[path].shape[1]) for path in paths]
        self.tapped = {**dict(widths), "grid": grid}
        return widths

    def forward(self, pixel_values: Tensor) -> Outputs:
        """Return mean features [B, V, D], measures [B, K] and taps [B, V, C, g, g] of views [B, V, 3, H, W]."""
        views = pixel_values.shape[:2]
        images = pixel_values.flatten(0, 1)
        if self.separate_images:
            with torch.autocast(images.device.type, enabled=False):
                single = [self._image_features(image[None]) for image in images]
            tokens_NTD = torch.cat([tokens for tokens, _ in single])
            taps = {path: torch.cat([taps[path] for _, taps in single]) for path in single[0][1]}
        else:
            tokens_NTD, taps = self._image_features(images)
        features_BVD = tokens_NTD.mean(dim=1).unflatten(0, views)
        predictions: dict[str, Tensor] = {}
        if self.head is not None:
            inputs = tokens_NTD.unflatten(0, views) if self.head.per_token else features_BVD
            predictions = {"measures": self.head(inputs), "measures_std": self.head.std}
        taps = {path: tap.unflatten(0, views) for path, tap in taps.items()}
        return Outputs(features_BVD, heads=predictions, taps=taps)

    def _image_features(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the tokens [N, T, D] of images [N, 3, H, W] in fp32, and their taps."""
        model: Any = self.pretrained
        images = images.to(model.dtype)
        if self._taps is None:
            return model.get_image_features(images).pooler_output.float(), {}
        with self._taps.recorded() as taps:
            tokens_NTD = model.get_image_features(images).pooler_output.float()
            return tokens_NTD, taps()
