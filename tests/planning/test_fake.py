"""Tests of execution on fake tensors: sizes of live storages, operations, and values of real masks."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from mllm.planning.fake import FakeExecution


def test_live_storages_are_counted_and_released():
    with FakeExecution() as mode:
        weight = torch.empty(1000, 2000)
        with mode.scope("product"):
            product = torch.empty(10, 1000) @ weight
        assert mode.live["product"] == 10 * 1000 * 4 + 10 * 2000 * 4 - 10 * 1000 * 4  # the factor is released
        view = product[:5].t()
        assert mode.total == 1000 * 2000 * 4 + 10 * 2000 * 4
        del product
        assert mode.live["product"] == 10 * 2000 * 4, "a view keeps its storage"
        del view
        assert mode.live["product"] == 0
        assert mode.peak == 1000 * 2000 * 4 + 10 * 1000 * 4 + 10 * 2000 * 4
        assert mode.at_peak["product"] == 10 * 1000 * 4 + 10 * 2000 * 4


def test_no_memory_is_used():
    with FakeExecution() as mode:
        large = torch.empty(10**6, 10**6)
        assert (large.relu() + 1).sum().item() == 1.0, "a number that is read is 1"
        assert mode.peak >= 3 * 4 * 10**12


def test_masks_and_ids_keep_their_values():
    with FakeExecution():
        hidden = torch.empty(2, 5, 8)
        labels = torch.tensor([[1, -100, 2, -100, -100], [-100, -100, -100, -100, 3]])
        assert isinstance(hidden, FakeTensor) and not isinstance(labels, FakeTensor)
        assert hidden[labels != -100].shape == (3, 8)
        sample, position = (labels != -100).nonzero(as_tuple=True)
        assert hidden[sample, position].shape == (3, 8)
        assert nn.Embedding(10, 4)(labels.clamp_min(0)).shape == (2, 5, 4)


def test_all_elements_of_a_fake_mask_are_true():
    with FakeExecution():
        pixels = torch.empty(3, 4, 5)
        assert pixels[(pixels == 0).sum(dim=(1, 2)) != 20].shape == (3, 4, 5)
        assert (pixels > 0).nonzero().shape == (60, 3)
        is_image = (pixels == 0).sum(dim=(1, 2)) != 20
        assert is_image.view(1, 3).sum(dim=1).tolist() == [3]


def test_large_masks_take_no_memory_and_are_counted():
    """The mask of a row of 128K tokens has 17 * 10^9 elements."""
    tokens = 2**17
    with FakeExecution() as mode:
        position = torch.arange(tokens)
        mask = position[:, None] >= position[None, :]
        mask = mask & torch.ones(tokens, tokens, dtype=torch.bool)
        assert isinstance(mask, FakeTensor) and mask.dtype is torch.bool
        assert mode.total == 8 * tokens + tokens**2, "a byte for each element"
        assert bool(mask.any()) and position[position > 5].numel() == tokens - 6


def test_backward_frees_what_the_forward_pass_saved():
    with FakeExecution() as mode:
        layers = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(4)))
        x = torch.empty(50, 100)
        before = mode.total
        loss = layers(x).square().sum()
        # Inputs of three layers after the first, the output and its square.
        saved = mode.total - before
        assert saved == 4 * 50 * 100 * 4 + 4
        loss.backward()
        del loss
        assert mode.total - before == 4 * 100 * 100 * 4, "the gradients of the weights remain"


def test_operations_of_a_linear_layer_are_2_n_d_forward_and_4_n_d_backward():
    with FakeExecution() as mode:
        layer, x = nn.Linear(300, 700, bias=False), torch.empty(11, 300, requires_grad=True)
        y = layer(x)
        assert mode.flops == 2 * 11 * 300 * 700
        y.sum().backward()
        assert mode.flops == 6 * 11 * 300 * 700


def test_operations_of_attention():
    with FakeExecution() as mode:
        query = torch.empty(2, 4, 128, 64, requires_grad=True)
        nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
        # Scores and their product with the values: 2 products forward, and 5 backward with recomputed scores.
        assert mode.flops == 7 * 2 * (2 * 4) * 128 * 128 * 64


def test_modules_can_be_converted():
    with FakeExecution() as mode:
        module = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
        module[0].register_parameter("tied", module[0].weight)
        module.to(torch.bfloat16)
        assert module[0].weight.dtype is torch.bfloat16 and module[0].tied is module[0].weight
        assert mode.total >= 64 * 64 * 2
        assert nn.Module._apply.__module__ == "mllm.planning.fake"
    assert nn.Module._apply.__module__ == "torch.nn.modules.module"
