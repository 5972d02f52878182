"""Tests of the memory of outputs: a repeated operation has the outputs of PyTorch on real tensors."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from mllm.planning.fake import FakeExecution

OPERATIONS = {
    "a sum": lambda x: x + 1,
    "an integer and a real factor": lambda x: (x * 2, x * 2.0),
    "in place": lambda x: x.add_(1),
    "a view": lambda x: x.view(-1, 8),
    "a view in bytes": lambda x: x.view(torch.uint8),
    "a slice": lambda x: x[1:, :, 2:5],
    "a transposed view": lambda x: x.transpose(0, 2),
    "views of one tensor": lambda x: x.split(3, dim=2),
    "an expanded view": lambda x: x[:1].expand(5, 6, 8),
    "a copy of an expanded view": lambda x: x[:1].expand(5, 6, 8).clone(),
    "a conversion": lambda x: x.to(torch.bfloat16),
    "several outputs": lambda x: torch.ops.aten.native_layer_norm(x, [8], None, None, 1e-5),
    "an output of no elements": lambda x: torch.cat([x[:0], x[:0]]),
    "a product": lambda x: x @ x.transpose(1, 2),
    "real positions": lambda x: x[torch.tensor([0, 2, 2])],
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
}


def facts(value, base):
    """Return sizes and aliases of tensors."""
    if not isinstance(value, torch.Tensor):
        return [facts(part, base) for part in value]
    shared = value.untyped_storage()._cdata == base.untyped_storage()._cdata
    return (value.shape, value.stride(), value.storage_offset(), value.dtype, str(value.device), shared, value is base)


@pytest.mark.parametrize("name", OPERATIONS)
def test_repeated_operations_have_the_outputs_of_real_ones(name):
    operation = OPERATIONS[name]
    real = torch.randn(4, 6, 8)
    expected = facts(operation(real), real)
    with FakeExecution() as mode:
        flops = []
        for _ in range(2):
            fake = torch.empty(4, 6, 8)
            before, total = mode.flops, mode.total
            assert isinstance(fake, FakeTensor)
            output = operation(fake)
            assert facts(output, fake) == expected
            flops.append((mode.flops - before, mode.total - total))
            del output
        assert flops[0] == flops[1]


def test_other_sizes_are_computed():
    with FakeExecution():
        for size in (3, 5, 3):
            assert torch.empty(size, 4).square().shape == (size, 4)
            assert torch.empty(4, size).t().square().stride() == (1, size)
