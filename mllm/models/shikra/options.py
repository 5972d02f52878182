"""Keys of `model_args` that only `shikra` and `perceptionGPT` have."""

from __future__ import annotations

from dataclasses import dataclass

from mllm.config.schema import ModelArgs


@dataclass(frozen=True)
class ShikraArgs(ModelArgs):
    """Options of a LLaVA whose projector is trained."""

    vision_tower: str | None = None
    """CLIP checkpoint that is combined with the language model to a LLaVA; None: the checkpoint is a LLaVA."""
    mm_vision_select_layer: int = -2
    """Hidden state of `vision_tower` that the projector reads; -1 is the last."""
    freeze_backbone: bool = False
    """Train only projector and heads, without a LoRA."""
    tune_mm_mlp_adapter: bool = False
    """Train only the projector."""
    freeze_mm_mlp_adapter: bool = False
    """Keep the projector frozen."""
    pretrain_mm_mlp_adapter: str | None = None
    """File with weights of the projector in the layout of LLaVA."""
