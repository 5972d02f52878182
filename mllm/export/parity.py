"""Whether two models say the same: logits of one prompt, read from the weights' files where they are not loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor

from mllm.errors import ConfigError
from mllm.models.backbone.streamed import reading
from mllm.models.encoding.text_processor import TextProcessor
from mllm.models.generation.generate import evaluating
from mllm.structures import IMAGE, Bundle, Sample, Turn

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far logits may be apart, relative to the largest logit (absolute where it is below 1)."""
POSITIONS = 8
"""How many last positions are compared: their logits depend on the whole prompt, and all would be [L, vocabulary]."""


@torch.inference_mode()
def probe_logits(bundle: Bundle) -> Tensor:
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
    with evaluating(model), reading(model):
        outputs = bundle.model(**batch.student)
        logits = outputs.vocabulary(outputs.hidden_BLD[0, -POSITIONS:])
    return logits.float().cpu()


def adapter_effect(bundle: Bundle, adapted: Tensor) -> float | None:
    """How far the adapter moves the logits that `probe_logits` gave; None where the model has no LoRA."""
    backbone = bundle.model.backbone
    if not isinstance(backbone, PeftModel):
        return None
    with backbone.disable_adapter():
        return float((probe_logits(bundle) - adapted).abs().max())


def compared(unmerged: Tensor, merged: Tensor, *, computed: torch.dtype, stored: torch.dtype) -> dict[str, Any]:
    """What the report says of two results of `probe_logits`; raises `ConfigError` where they are too far apart.

    `computed` is the precision of both, `stored` that of the merged weights, which rounds them.
    """
    difference, largest = float((merged - unmerged).abs().max()), float(unmerged.abs().max())
    allowed = max(TOLERANCE[computed], TOLERANCE.get(stored, 0.0)) * max(1.0, largest)
    if not difference <= allowed:  # also where one of them is NaN
        raise ConfigError(
            f"the merged logits differ from the adapter's by {difference:.2g} where {allowed:.2g} is allowed; the "
            "adapter cannot be merged exactly, use it unmerged"
        )
    return {
        "parity": "checked",
        "max_abs_difference": difference,
        "allowed_difference": allowed,
        "largest_logit": largest,
        "compared_in": named(computed),
    }


def named(dtype: torch.dtype) -> str:
    """`bfloat16`."""
    return str(dtype).removeprefix("torch.")
