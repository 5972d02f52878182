"""The table of arrays and weights: both directions are inverse, and the weights are those of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import T5GemmaForConditionalGeneration

from mllm.models.t5gemma.config import build_config
from mllm.models.t5gemma.layout import arrays
from mllm.models.t5gemma.sizes import PUBLISHED_ROWS, SIZES, Dimensions, Stack

SMALL = Stack(layers=1, width=12, hidden=20, heads=3, head_dim=4, kv_heads=3)


@pytest.mark.parametrize(
    "dimensions",
    [
        Dimensions(SMALL, replace(SMALL, width=8, heads=4, kv_heads=2, hidden=6), rows=11),
        Dimensions(replace(SMALL, heads=4, kv_heads=2, hidden_first=True), SMALL, rows=11),
    ],
)
def test_each_direction_is_the_inverse_of_the_other(dimensions):
    for array in arrays(dimensions):
        value = torch.arange(torch.Size(array.shape).numel()).reshape(array.shape)
        weights = list(array.weights_of(value))
        assert [tuple(weight.shape) for weight in weights] == [array.weight_shape] * len(array.weights)
        assert torch.equal(array.array_of(weights), value), array.name
        assert torch.equal(torch.stack(list(array.weights_of(array.array_of(weights)))), torch.stack(weights))


@pytest.mark.parametrize("size", SIZES)
def test_every_published_size_has_the_weights_of_transformers(size):
    dimensions = Dimensions(*SIZES[size], PUBLISHED_ROWS)
    assert dimensions.size == size
    with torch.device("meta"):
        model = T5GemmaForConditionalGeneration(build_config(dimensions, "bfloat16", [1]))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: array.weight_shape for array in arrays(dimensions) for name in array.weights}
    assert found == expected


def test_the_arrays_of_grouped_queries_and_of_a_9b_differ():
    names = {array.name: array.shape for array in arrays(Dimensions(*SIZES["9b-2b"], PUBLISHED_ROWS))}
    assert names["encoder/layer_41/mlp/gating_einsum"] == (2, 14336, 3584)
    assert names["decoder/layer_25/mlp/gating_einsum"] == (2, 2304, 9216)
    assert names["decoder/layer_0/cross_attn/kv_einsum/w"] == (2, 4, 3584, 256)
    small = {array.name: array.shape for array in arrays(Dimensions(*SIZES["s-s"], PUBLISHED_ROWS))}
    assert small["decoder/layer_0/attn/qkv_einsum/w"] == (3, 8, 512, 64)
    assert "decoder/layer_0/attn/kv_einsum/w" not in small
    assert small["decoder/layer_0/cross_attn/kv_einsum/w"] == (2, 8, 512, 64)
