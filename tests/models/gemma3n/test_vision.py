"""Vision part of Gemma 3n."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import Gemma3nConfig

from mllm.models.backbone.vision_part import skeleton
from mllm.models.gemma3n.vision import Gemma3nVision


def test_a_model_keeps_the_arguments_of_its_tower(tiny_student: Path) -> None:
    """timm removes entries from the arguments that it receives, without which no second model can be made."""
    config = Gemma3nConfig.from_pretrained(tiny_student)
    expected = copy.deepcopy(config.vision_config.model_args)
    with torch.device("meta"):
        model = Gemma3nVision(config)
    assert model.config.vision_config.model_args == expected and expected["block_args"]
    assert sum(p.numel() for p in skeleton(model).parameters()) == sum(p.numel() for p in model.parameters())
