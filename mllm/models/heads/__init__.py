"""What reads objects out of hidden states, and writes objects into embeddings: heads for boxes and for masks."""

from __future__ import annotations

from mllm.models.heads.box import BoxHead
from mllm.models.heads.fusion import LayerFusion
from mllm.models.heads.mask import MaskHead

__all__ = ["BoxHead", "LayerFusion", "MaskHead"]
