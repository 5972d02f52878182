"""A model that reads named views of one patient and gives numbers, without a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mllm.models.backbone.taps import Taps, tap_paths
from mllm.models.backbone.vision_part import skeleton
from mllm.models.heads import RegressionHead
from mllm.models.trainable_model import AdaptedModel
from mllm.structures import Outputs


class VisionModel(AdaptedModel):
    """The vision part of a model, and a head that reads measures from it, where there is one.

    `layers` is the path of the tower's sequence of layers, `side` the pixels of an image's side.
    """

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
        self.one_by_one = False
        """Let every image run alone, so that its features depend on no neighbor, not even in the last bit."""
        self._taps: Taps | None = None
        self.tapped: dict[str, int] = {}
        """The widths of the layers whose outputs are kept, by path, and the side of their `grid`."""

    @property
    def head(self) -> RegressionHead | None:
        """The head that reads measures."""
        head = dict(self.heads.items()).get("measures")
        assert head is None or isinstance(head, RegressionHead)
        return head

    def tap(self, chosen: Sequence[int | str] | None, count: int, grid: int) -> list[tuple[str, int]]:
        """Keeps the outputs of `chosen` layers from now on, see `Taps`; gives their paths and widths."""
        paths = tap_paths(self.pretrained, self.layers, chosen, count)
        self._taps = Taps(self.pretrained, paths, grid)
        empty: Any = skeleton(self.pretrained)
        with Taps(empty, paths, grid).kept() as taps:
            empty.get_image_features(torch.zeros(1, 3, self.side, self.side, device="meta"))
            seen = taps()
        widths = [(path, seen[path].shape[1]) for path in paths]
        self.tapped = {**dict(widths), "grid": grid}
        return widths

    def forward(self, pixel_values: Tensor) -> Outputs:
        """The mean features [B, V, D] of views [B, V, 3, H, W], their measures [B, K], and taps [B, V, C, g, g]."""
        views = pixel_values.shape[:2]
        images = pixel_values.flatten(0, 1)
        if self.one_by_one:
            with torch.autocast(images.device.type, enabled=False):
                seen = [self._see(image[None]) for image in images]
            features_ND = torch.cat([features for features, _ in seen])
            taps = {path: torch.cat([taps[path] for _, taps in seen]) for path in seen[0][1]}
        else:
            features_ND, taps = self._see(images)
        features_BVD = features_ND.unflatten(0, views)
        found = {}
        if self.head is not None:
            found = {"measures": self.head(features_BVD), "measures_std": self.head.std}
        taps = {path: tap.unflatten(0, views) for path, tap in taps.items()}
        return Outputs(features_BVD, heads=found, taps=taps)

    def _see(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean features [N, D] of images [N, 3, H, W] and their taps."""
        model: Any = self.pretrained
        images = images.to(model.dtype)
        if self._taps is None:
            return model.get_image_features(images).pooler_output.float().mean(dim=1), {}
        with self._taps.kept() as taps:
            features_ND = model.get_image_features(images).pooler_output.float().mean(dim=1)
            return features_ND, taps()
