"""The attention of rows is chosen with a reason in the log."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from mllm.config.hardware import CHECKOUT, Hardware
from mllm.config.reading import read_config
from mllm.errors import ConfigError
from mllm.run.attention import attention_of_rows

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)
GPU = Hardware("cuda", "some card", (8, 0), 24 << 30, 1, 8 << 30, 2, precision="bf16")


@pytest.fixture
def choose(text_bundle, caplog):
    """A function that returns the attention for `attn_implementation`, and the log."""

    def chosen(requested: str | None, hardware: Hardware):
        config = read_config(CHECKOUT / "config" / "training_configs" / "gemma3n_medrescue.py")
        config = config.replaced(**{"model_args.attn_implementation": requested})
        with caplog.at_level(logging.INFO, logger="mllm"):
            return attention_of_rows(config, hardware, text_bundle.model), caplog.text

    return chosen


@pytest.mark.parametrize(
    ("requested", "hardware", "reason"),
    [
        (None, CPU, "SDPA, because FlexAttention has no backward pass on a CPU"),
        ("flex_attention", CPU, "SDPA, because FlexAttention has no backward pass on a CPU"),
        ("sdpa", GPU, "SDPA, because model_args.attn_implementation is 'sdpa'"),
        (None, replace(GPU, capability=(7, 5)), "needs compute capability 8.0, and the GPU has 7.5"),
    ],
)
def test_sdpa_is_chosen_with_a_reason(choose, requested, hardware, reason):
    attention, log = choose(requested, hardware)
    assert attention is None and reason in log


def test_a_plan_logs_nothing(choose):
    assert choose(None, replace(GPU, device="planned")) == (None, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU of this machine does not fail")
def test_a_gpu_that_fails_has_sdpa_unless_flex_attention_was_asked_for(choose):
    """The check runs on the device: a machine without a GPU fails as one with a broken driver does."""
    attention, log = choose(None, GPU)
    assert attention is None and "SDPA, because FlexAttention failed on this device (" in log
    with pytest.raises(ConfigError, match=r"attn_implementation='flex_attention' cannot be used, because .*remove it"):
        choose("flex_attention", GPU)
