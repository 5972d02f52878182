"""Attention inside segments is compared with attention under a dense mask, which is written token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mllm.models.backbone import segment_attention
from mllm.models.backbone.segment_attention import NAME, Segment, Segments, use_segment_attention
from mllm.tiny.checkpoints import write_tiny

ROW = [
    Segment(0, 7, blocks=((2, 5),)),
    Segment(7, 11, prefix=((0, 6),)),
    Segment(11, 13, prefix=((0, 6), (7, 9))),
    Segment(13, 18),
]
"""Three questions about one image, whose three tokens attend to each other, and a text. The third question begins with
the first six tokens of the first one and two of the second one."""


def dense_mask(window: int | None) -> Tensor:
    """Return which tokens of `ROW` [18, 18] each token attends to."""
    mask = torch.zeros(18, 18, dtype=torch.bool)
    for segment in ROW:
        before = [token for run in segment.prefix for token in range(*run)]
        order = [*before, *range(segment.start, segment.end)]
        for position, query in enumerate(order):
            if query in before:
                continue
            for other, key in enumerate(order):
                is_near = window is None or position - other < window
                mask[query, key] |= other <= position and is_near
        for start, end in segment.blocks:
            mask[segment.start + start : segment.start + end, segment.start + start : segment.start + end] = True
    return mask


def attend(mask: object, window: int | None, heads: int = 2) -> tuple[Tensor, list[Tensor]]:
    """Return the attention [1, 18, 4, 8] of random queries, keys and values, and the gradients of these."""
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(1, 4, 18, 8, generator=generator, requires_grad=True)
    key, value = (torch.randn(1, heads, 18, 8, generator=generator, requires_grad=True) for _ in range(2))
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 4 // heads, True
    attention = ALL_ATTENTION_FUNCTIONS[NAME]
    output, _ = attention(module, query, key, value, mask, scaling=0.3, sliding_window=window)
    weights = torch.randn(output.shape, generator=generator)
    return output, list(torch.autograd.grad((output * weights).sum(), (query, key, value)))


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory):
    folder = write_tiny("llama", tmp_path_factory.mktemp("llama") / "base")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    use_segment_attention(model)
    return model


@pytest.mark.parametrize("window", [None, 100, 6, 3])
@pytest.mark.parametrize("heads", [4, 2])
def test_segments_attend_as_under_a_dense_mask(window, heads):
    actual, actual_gradients = attend(Segments(ROW), window, heads)
    expected, gradients = attend(dense_mask(window)[None, None], window, heads)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(actual_gradients, gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 100, 6, 3])
@pytest.mark.parametrize("rows", [1, 2, 4, 50])
def test_long_segments_attend_as_under_a_dense_mask(window, rows, monkeypatch):
    monkeypatch.setattr(segment_attention, "LARGEST_MASK", 0)
    monkeypatch.setattr(segment_attention, "ROWS", rows)
    monkeypatch.setattr(Segment, "mask", None)  # the whole mask of a segment is not made
    actual, actual_gradients = attend(Segments(ROW), window)
    monkeypatch.undo()
    expected, gradients = attend(dense_mask(window)[None, None], window)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(actual_gradients, gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [
            item for item in (result if isinstance(result, (list, tuple)) else [result]) if torch.is_tensor(item)
        ]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


@pytest.mark.parametrize("window", [None, 512])
def test_no_tensor_of_a_long_segment_is_quadratic_in_its_length(window):
    largest = []
    for length in (4096, 8192):
        segments = Segments([Segment(0, length, blocks=((20, 276), (3000, 3256)))])
        query = torch.zeros(1, 1, length, 8, requires_grad=True)
        module = nn.Module()
        module.num_key_value_groups, module.is_causal = 1, True
        with LargestTensor() as record:
            output, _ = ALL_ATTENTION_FUNCTIONS[NAME](module, query, query, query, segments, sliding_window=window)
            output.sum().backward()
        largest.append(record.elements)
    assert largest[1] <= 2 * largest[0] and largest[1] <= 8192 * 250, largest


def test_layers_share_the_masks_of_windows(monkeypatch):
    """Of eight windows the first one and one with a block have masks of their own, and a second layer makes only the
    mask of the block again."""
    made = []
    mask_of_rows = Segment.mask_of_rows
    monkeypatch.setattr(Segment, "mask_of_rows", lambda *inputs: made.append(inputs) or mask_of_rows(*inputs))
    segments = Segments([Segment(0, 8192, blocks=((4200, 4300),))])
    query = torch.zeros(1, 1, 8192, 8)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 1, True
    counts = []
    for _ in range(2):
        ALL_ATTENTION_FUNCTIONS[NAME](module, query, query, query, segments, sliding_window=512)
        counts.append(len(made))
    assert counts == [3, 4]


def test_a_plain_segment_needs_no_mask():
    assert Segment(3, 9).mask(None, torch.device("cpu")) is None
    assert Segment(3, 9).mask(6, torch.device("cpu")) is None
    assert Segment(3, 9).mask(5, torch.device("cpu")) is not None


def test_without_segments_the_model_attends_as_with_sdpa(model, tmp_path_factory):
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        actual = model(ids, attention_mask=mask).logits
        model.config._attn_implementation = "sdpa"
        expected = model(ids, attention_mask=mask).logits
        use_segment_attention(model)
    assert torch.equal(actual, expected)
