"""The exporter 'student': the vision part of a model with all that it learned in its weights, and its head beside."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.export.card import Facts, card_text
from mllm.export.settings import write_settings
from mllm.files import replaced_folder, write_text
from mllm.models.adapters.attach import merged_weights
from mllm.models.adapters.trained_file import IN_MERGED, write_trained
from mllm.models.vision_model import VisionModel
from mllm.registry import EXPORTERS
from mllm.structures import Bundle

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3}
"""How far features of the folded model may be from those before, relative to the largest, by the weights' dtype."""
HALF = 5e-2
"""The same in half precision, where folding rounds every weight."""


@EXPORTERS.register_module(name="student")
def write(
    bundle: Bundle,
    folder: str | Path,
    *,
    settings: Mapping[str, Any],
    facts: Facts,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a model that `predict.py --model` loads: weights with the LoRA folded in, head, image processor and card.

    Tensors bear the names that they have in the whole model, and `dtype` where one is given. The bundle's own model
    stays as it is. Raises `ConfigError` where the folded model does not see what the unfolded one sees.
    """
    folder = Path(folder)
    taught = bundle.model
    assert isinstance(taught, VisionModel), "this exporter is for part='vision'"
    folded = copy.deepcopy(taught).eval()
    before = _features(folded)
    folded.backbone = merged_weights(folded.backbone)  # type: ignore[arg-type]
    difference = float((_features(folded) - before).abs().max() / before.abs().max().clamp_min(1e-12))
    if not difference <= TOLERANCE.get(folded.pretrained.dtype, HALF):  # NaN is not
        raise ConfigError(
            f"the student with its LoRA folded in sees otherwise than before (relative difference {difference:.2g}): "
            f"use {folder.parent / 'adapter'} instead, and please report it"
        )
    if dtype is not None:
        torch.nn.Module.to(folded.pretrained, dtype)
    with replaced_folder(folder) as temporary:
        folded.pretrained.save_pretrained(temporary)
        write_trained(folded, temporary, IN_MERGED)
        bundle.encoder.processor.save_pretrained(temporary)
        write_settings(temporary, settings)
        write_text(temporary / "README.md", card_text("merged", settings, facts))
    logger.info("student written to %s (largest relative difference of its features %.2g)", folder, difference)
    return folder


@torch.no_grad()
def _features(model: VisionModel) -> Any:
    """The mean features of one generated image as each of the views, [1, V, D]."""
    generator = torch.Generator().manual_seed(0)
    views = 1 if model.head is None else len(model.head.views)
    pixels: Tensor = torch.rand(1, views, 3, model.side, model.side, generator=generator).to(model.pretrained.device)
    return model(pixels).hidden_BLD
