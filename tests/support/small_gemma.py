"""Common parts of the tests of adapters: a tiny Gemma 3 with an adapter, one batch with two images, and its logits."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import Gemma3ForConditionalGeneration

from mllm.models.adapters.attach import attach_adapter
from mllm.models.medgemma.family import LORA_TARGETS

TOWERS = {
    "vision": "model.vision_tower",
    "projector": "model.multi_modal_projector",
    "language": "model.language_model",
}
LANGUAGE_LAYERS, VISION_LAYERS = 3 * 7, 2 * 6


def load(folder: Path, **options: object) -> Gemma3ForConditionalGeneration:
    return Gemma3ForConditionalGeneration.from_pretrained(folder, **options)


def attach(model: nn.Module, **options: object) -> PeftModel:
    torch.manual_seed(0)
    return attach_adapter(model, targets=LORA_TARGETS, **options)


def inputs(model: nn.Module, words: int = 12) -> dict[str, torch.Tensor]:
    """Return two samples of `words` text tokens around 256 image tokens."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(20, 200, (2, words), generator=generator)
    image = model.config.image_token_id
    ids = torch.cat([text[:, :4], torch.full((2, 256), image), text[:, 4:]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": (ids == image).long(),
        "pixel_values": torch.randn(2, 3, 224, 224, generator=generator),
    }


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    """Return the logits after the image."""
    model.eval()
    return model(**inputs(model)).logits[:, 260:].float()


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return float((first - second).abs().max()) < tolerance


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
