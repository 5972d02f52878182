"""Adapters on the Linear layers of GPT-2, whose weights are transposed [in, out], against PEFT and full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_checkpoints.text import decoder
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.combine import save_adapter
from mllm.models.adapters.merge import merged_weights
from mllm.models.text.towers import decoder_targets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2") / "gpt2"
    decoder("gpt2")[0].save_pretrained(path)
    return path


def load(folder) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def attach(folder, **options) -> Any:
    model = load(folder)
    return attach_adapter(model, targets=decoder_targets(model), **options)


@torch.no_grad()
def logits(model) -> Tensor:
    return model.eval()(torch.arange(20).view(2, 10)).logits


def fill(model) -> Any:
    """Set the B matrices of the trained adapter to random values, as after training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_is_fresh_saved_and_merged_without_a_change_of_the_outputs(folder, tmp_path, use_dora, recwarn):
    model = attach(folder, lora_r=2, use_dora=use_dora)
    torch.testing.assert_close(logits(model), logits(load(folder)))
    fill(model)
    assert (logits(model) - logits(load(folder))).abs().max() > 1e-2
    save_adapter(model, tmp_path, "someone/gpt2")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(load(folder), tmp_path)), logits(model))
    before = logits(model)
    torch.testing.assert_close(logits(merged_weights(model)), before, rtol=1e-4, atol=1e-4)
    assert not [warning for warning in recwarn if "fan_in_fan_out" in str(warning.message)]


def test_a_stack_of_two_adapters_is_saved_as_one(folder, tmp_path):
    save_adapter(fill(attach(folder, lora_r=3)), tmp_path / "first", "someone/gpt2")
    model = fill(attach(folder, lora_r=2, adapter_path=str(tmp_path / "first")))
    save_adapter(model, tmp_path / "both", "someone/gpt2")
    again = PeftModel.from_pretrained(load(folder), tmp_path / "both")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)
    alone = PeftModel.from_pretrained(load(folder), tmp_path / "first")
    assert (logits(alone) - logits(model)).abs().max() > 1e-2
