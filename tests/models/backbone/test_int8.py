"""Tests of 8-bit layers without outliers."""

import bitsandbytes as bnb
import torch

from mllm.models.backbone.int8 import without_outliers


@torch.no_grad()
def test_a_token_changes_the_others_through_outliers_only():
    torch.manual_seed(0)
    layer = bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bnb.nn.Int8Params(torch.randn(32, 64), has_fp16_weights=False, requires_grad=False)
    layer = layer.to("cpu").eval()  # in training, the CPU multiplies in floating point
    first = torch.randn(3, 64)
    second = first.clone()
    second[2, 5] = 50.0
    assert not torch.equal(layer(first)[:2], layer(second)[:2])
    with without_outliers(torch.nn.Sequential(layer)):
        assert torch.equal(layer(first)[:2], layer(second)[:2])
    assert layer.state.threshold == 6.0
