"""Heads that predict objects and measures from features, and embed objects."""

from __future__ import annotations

from mllm.models.heads.box import BoxHead
from mllm.models.heads.fusion import LayerFusion, VisionShape
from mllm.models.heads.mask import MaskHead
from mllm.models.heads.regression import RegressionHead

__all__ = ["BoxHead", "LayerFusion", "MaskHead", "RegressionHead", "VisionShape"]
