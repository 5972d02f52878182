"""FlexAttention on a CPU.

PyTorch refuses the backward pass of `flex_attention` there, but its operator has a form in plain PyTorch for both
passes. It shows that masks, scores and gradients are right, not that a GPU compiles them.
"""

from __future__ import annotations

import pytest
from torch.nn.attention import flex_attention as module

from mllm.models.backbone import flex_segments
from mllm.models.backbone.segment_attention import RowAttention


def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> RowAttention:
    """Return the attention of rows with gradients on a CPU, until the test ends."""
    monkeypatch.setattr(module, "_validate_device", lambda *states: None)
    monkeypatch.setattr(module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex_segments, "_compiled", lambda: module.flex_attention)
    return flex_segments.flex_segments
