"""Training of every family over fp16 and 4-bit weights with an fp32 residual stream, on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mllm.config.hardware import Hardware
from mllm.engine.learner import Learner
from mllm.family import FAMILIES
from mllm.models.builder.builder import load_pretrained
from mllm.objectives.text import NextToken
from mllm.tiny.checkpoints import write_tiny

FP16 = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2, precision="fp16")
KINDS = [
    ("medgemma", "medgemma"),
    ("gemma3n-student", "gemma3n-student"),
    ("image-text", "llava"),
    ("causal-lm", "gemma3n"),
    ("shikra", "shikra"),
    ("seq2seq", "t5gemma"),
]


def gradients(kind: str, folder: Path, is_checkpointed: bool, **options: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of one training step on artificial samples, by parameter."""
    family = FAMILIES.find(kind)
    torch.manual_seed(0)
    bundle = load_pretrained(family.options(kind, str(folder), lora_r=2, lora_dropout=0.0, **options), FP16)
    samples = [bundle.encoder.encode(sample) for sample in bundle.encoder.synthetic(2)]
    batch = bundle.encoder.pad(samples)
    objective = NextToken()
    objective.connect(bundle, None)
    learner = Learner(bundle.model, {"next_token": objective}, None, "items").train()
    if is_checkpointed:
        bundle.model.enable_checkpointing({"use_reentrant": False})
    outputs = learner(student=batch.student, targets=batch.targets, teacher=None, counts=learner.counts(batch.targets))
    outputs["loss"].backward()
    assert outputs["loss"].isfinite()
    return {name: parameter.grad for name, parameter in learner.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("kind", "tiny"), KINDS)
@pytest.mark.parametrize("options", [{}, {"load_in_4bit": True}], ids=["fp16", "4bit"])
def test_every_family_trains_with_and_without_checkpointing(kind, tiny, options, tmp_path_factory):
    folder = write_tiny(tiny, tmp_path_factory.getbasetemp() / f"half-{tiny}")
    plain = gradients(kind, folder, is_checkpointed=False, **options)
    checkpointed = gradients(kind, folder, is_checkpointed=True, **options)
    assert plain and all(gradient.dtype is torch.float32 and gradient.isfinite().all() for gradient in plain.values())
    assert any(gradient.any() for gradient in plain.values())
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)
