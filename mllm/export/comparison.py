"""Comparison of two models by their outputs for one generated input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn

from mllm.errors import ConfigError
from mllm.models.backbone.streamed import reading
from mllm.models.encoding.text_processor import TextProcessor
from mllm.models.generation.generate import evaluating
from mllm.models.vision_model import VisionModel
from mllm.protocols import Bundle
from mllm.structures import IMAGE, Sample, Turn

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest allowed difference of logits, relative to the largest logit (absolute if that is below 1), by dtype."""
FEATURE_TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
"""Largest allowed difference of vision features in fp32 and in half precision, relative to the largest feature."""
POSITIONS = 8
"""Number of compared positions, counted from the end. Their logits depend on the whole prompt, and the logits of all
positions [L, vocabulary] would need much memory."""


@torch.inference_mode()
def probe_logits(bundle: Bundle) -> Tensor:
    """Return logits [positions, vocabulary] at the end of a short conversation, in fp32 on the CPU.

    The conversation is about an image of noise with a fixed seed, if the model reads images. Weights that are not
    loaded are read from their files.
    """
    turns = [Turn("user", "What does this image show?"), Turn("assistant", "Noise, and nothing beside it.")]
    images = []
    if not isinstance(bundle.encoder.processor, TextProcessor):
        turns[0] = Turn("user", f"{IMAGE} {turns[0].text}")
        images = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))]
    model = bundle.model.pretrained
    batch = bundle.encoder.pad([bundle.encoder.encode(Sample(turns, images))]).to(model.device)
    with evaluating(model), reading(model), bundle.model.computing():
        outputs = bundle.model(**batch.student)
        logits = outputs.vocabulary(outputs.hidden_BLD[0, -POSITIONS:])
    return logits.float().cpu()


@torch.no_grad()
def probe_features(model: VisionModel) -> Tensor:
    """Return the mean features [1, V, D] of V generated views."""
    generator = torch.Generator().manual_seed(0)
    views = 1 if model.head is None else len(model.head.views)
    pixels = torch.rand(1, views, 3, model.side, model.side, generator=generator).to(model.pretrained.device)
    features: Tensor = model(pixels).hidden_BLD
    return features


def adapter_effect(bundle: Bundle, adapted: Tensor) -> float | None:
    """Return the largest difference that the adapter makes to the logits; None for a model without LoRA.

    `adapted` is the result of `probe_logits` with the adapter.
    """
    backbone = bundle.model.backbone
    if not isinstance(backbone, PeftModel):
        return None
    with backbone.disable_adapter():
        return float((probe_logits(bundle) - adapted).abs().max())


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Round the floating-point weights of `model` to values of `dtype` in place, without a change of their dtype.

    The model then computes with exactly the values that are written in `dtype`. None changes nothing.
    """
    if dtype is None:
        return
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.copy_(tensor.to(dtype))


def compare_logits(unmerged: Tensor, merged: Tensor, *, computed: torch.dtype, stored: torch.dtype) -> dict[str, Any]:
    """Return the comparison of two results of `probe_logits` for the report.

    `computed` is the dtype of both computations, `stored` the dtype to which the merged weights are rounded. Raises
    `ConfigError` if the difference exceeds the tolerance or is not a number.
    """
    difference, largest = float((merged - unmerged).abs().max()), float(unmerged.abs().max())
    allowed = max(TOLERANCE[computed], TOLERANCE.get(stored, 0.0)) * max(1.0, largest)
    if not difference <= allowed:  # also if one of them is NaN
        raise ConfigError(
            f"the merged logits differ from the adapter's by {difference:.2g}, and the limit is {allowed:.2g}: the "
            "adapter cannot be merged exactly, use it unmerged"
        )
    return {
        "parity": "checked",
        "max_abs_difference": difference,
        "allowed_difference": allowed,
        "largest_logit": largest,
        "compared_in": dtype_name(computed),
    }


def compare_features(unmerged: Tensor, merged: Tensor, stored: torch.dtype) -> dict[str, Any]:
    """Return the comparison of two results of `probe_features` for the report; see `compare_logits`."""
    difference = float((merged - unmerged).abs().max() / unmerged.abs().max().clamp_min(1e-12))
    allowed = FEATURE_TOLERANCE if stored == torch.float32 else HALF_TOLERANCE
    # Also False for NaN.
    if not difference <= allowed:
        raise ConfigError(
            f"the features of the merged vision model differ from the adapter's (relative difference {difference:.2g}, "
            f"limit {allowed:.2g}): use adapter/ instead, and please report it"
        )
    return {"parity": "checked", "max_relative_difference": difference, "allowed_difference": allowed}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")
