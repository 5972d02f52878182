"""The exporter 'merged': the adapter folded into full-precision weights, checked against the unmerged model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor

from mllm.errors import ConfigError
from mllm.export.card import Facts, card_text
from mllm.export.settings import write_settings
from mllm.files import replaced_folder, write_json, write_text
from mllm.models.adapters import merged_weights
from mllm.models.generation import evaluating
from mllm.models.head_files import IN_MERGED, write_trained
from mllm.models.perception import PerceptionModel
from mllm.models.text_processor import TextProcessor
from mllm.registry import EXPORTERS
from mllm.structures import IMAGE, Bundle, Sample, Turn

logger = logging.getLogger(__name__)

REPORT = "export_report.json"
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far merged logits may be from unmerged ones, relative to the largest logit (absolute where it is below 1)."""
_POSITIONS = 8
"""How many last positions are compared: their logits depend on the whole prompt, and all would be [L, vocabulary]."""


@EXPORTERS.register_module(name="merged")
def write(
    bundle: Bundle, folder: str | Path, *, settings: Mapping[str, Any], facts: Facts, dtype: torch.dtype | None = None
) -> Path:
    """Folds the bundle's adapter into its base and writes the model with processor, `mllm.json`, card and report.

    The bundle's model is the merged one afterwards. `dtype` is that of the written weights; None keeps the one they
    have. Raises `ConfigError` for a quantized base, a model without adapter, and where the merged logits differ.
    """
    folder = Path(folder)
    report = merge_in_place(bundle)
    model = bundle.model.pretrained
    if dtype is not None:
        model.to(dtype)
    report["dtype"] = str(model.dtype).removeprefix("torch.")
    with replaced_folder(folder) as temporary:
        model.save_pretrained(temporary)
        write_trained(bundle.model, temporary, IN_MERGED)
        bundle.encoder.processor.save_pretrained(temporary)
        # Both are in the weights now.
        write_settings(temporary, {**settings, "vision_tower": None, "pretrain_mm_mlp_adapter": None})
        write_json(temporary / REPORT, {"base": facts.base, **report})
        write_text(temporary / "README.md", card_text("merged", settings, facts))
    logger.info("merged model written to %s (largest difference of logits %.2g)", folder, report["max_abs_difference"])
    return folder


def merge_in_place(bundle: Bundle) -> dict[str, Any]:
    """Folds the adapter into the weights of `bundle.model` and gives the parity report.

    Compares the logits of one prompt about one generated image before and after, in the precision of the weights.
    """
    perception: PerceptionModel = bundle.model
    if not isinstance(perception.backbone, PeftModel) and not perception.trained_state():
        raise ConfigError("there is no adapter to merge: the model has none")
    before = _probe_logits(bundle)
    backbone: Any = perception.backbone
    perception.backbone = merged_weights(backbone)
    model = perception.pretrained
    if perception.rows is not None:
        perception.rows.fold(model)
    precision = model.dtype
    difference = float((_probe_logits(bundle) - before).abs().max())
    largest = float(before.abs().max())
    allowed = _TOLERANCE[precision] * max(1.0, largest)
    if not difference <= allowed:
        raise ConfigError(
            f"the merged logits differ from the adapter's by {difference:.2g} where {allowed:.2g} is allowed; the "
            "adapter cannot be merged exactly, use it unmerged"
        )
    return {
        "max_abs_difference": difference,
        "allowed_difference": allowed,
        "largest_logit": largest,
        "compared_in": str(precision).removeprefix("torch."),
        "tied_embeddings": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    }


@torch.inference_mode()
def _probe_logits(bundle: Bundle) -> Tensor:
    """Logits [positions, vocabulary] at the end of a short conversation, in fp32 on the host.

    It is about an image of seeded noise, where the model reads images.
    """
    turns = [Turn("user", "What does this image show?"), Turn("assistant", "Noise, and nothing beside it.")]
    images = []
    if not isinstance(bundle.encoder.processor, TextProcessor):
        turns[0] = Turn("user", f"{IMAGE} {turns[0].text}")
        images = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))]
    model = bundle.model.pretrained
    batch = bundle.encoder.pad([bundle.encoder.encode(Sample(turns, images))]).to(model.device)
    with evaluating(model):
        outputs = bundle.model(**batch.student)
        logits = outputs.vocabulary(outputs.hidden_BLD[0, -_POSITIONS:])
    return logits.float().cpu()
