"""The loss head against PyTorch's own cross-entropy over full logits."""

import pytest
import torch
from torch import nn

from mllm.objectives.text import NextToken, token_losses
from mllm.structures import IGNORE, Context, Outputs

WIDTH, VOCABULARY = 32, 97


def _case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 11, WIDTH, generator=generator, dtype=dtype)
    labels = torch.randint(0, VOCABULARY, (3, 11), generator=generator)
    labels[:, :4] = IGNORE
    labels[2] = IGNORE
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    return hidden, labels, head


def _oracle(hidden, labels, head, softcap):
    logits = head(hidden)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    losses = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORE, reduction="none"
    )
    return losses.sum(dim=1)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("tile_bytes", [4 * VOCABULARY * 2, 2**20])
def test_loss_and_gradient_equal_full_logits(softcap, frozen, tile_bytes):
    hidden, labels, head = _case()
    head.weight.requires_grad_(not frozen)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    objective = NextToken(tile_bytes=tile_bytes)
    total = objective.total(Context({"labels": labels}, Outputs(ours, head, softcap)))
    expected = _oracle(theirs, labels, head, softcap)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.tensor([1.0, 3.0, 5.0])
    (total * upstream).sum().backward()
    weight_gradient = head.weight.grad
    head.weight.grad = None
    (expected * upstream).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    if not frozen:
        torch.testing.assert_close(weight_gradient, head.weight.grad, rtol=1e-5, atol=1e-6)


def test_counts_leave_out_the_first_token_which_nothing_precedes():
    labels = torch.tensor([[5, IGNORE, 7, 8], [IGNORE] * 4])
    assert NextToken().count({"labels": labels}).tolist() == [2, 0]


def test_nothing_supervised_gives_zero_with_a_gradient():
    hidden, labels, head = _case(torch.float32)
    head.requires_grad_(False)
    hidden.requires_grad_()
    total = NextToken().total(Context({"labels": torch.full_like(labels, IGNORE)}, Outputs(hidden, head)))
    assert total.tolist() == [0, 0, 0]
    total.sum().backward()
    assert hidden.grad.abs().sum() == 0


def test_an_fp16_vocabulary_does_not_overflow_with_large_fp32_hidden_states():
    hidden, labels, head = _case(torch.float32)
    head.requires_grad_(False)
    expected = _oracle(hidden[:1] * 1e5, labels[:1], head, 30.0)
    half = nn.Linear(WIDTH, VOCABULARY, bias=False).half().requires_grad_(False)
    half.weight.copy_(head.weight)
    total = NextToken().total(Context({"labels": labels[:1]}, Outputs(hidden[:1] * 1e5, half, 30.0)))
    torch.testing.assert_close(total, expected, rtol=1e-2, atol=1e-2)


def test_a_loss_whose_probability_underflows_is_exact():
    hidden, labels, head = _case(torch.float32)
    head.requires_grad_(False)
    ours, theirs = (hidden.mul(2e3).requires_grad_() for _ in range(2))
    total = NextToken().total(Context({"labels": labels}, Outputs(ours, head)))
    expected = _oracle(theirs, labels, head, None)
    assert expected[0] > 1000 * (labels[0] != IGNORE).sum()
    torch.testing.assert_close(total, expected)
    total.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_bf16_vocabulary_under_autocast_is_within_its_rounding():
    hidden, labels, head = _case(torch.float32)
    head.requires_grad_(False)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    expected = _oracle(theirs, labels, head, None)
    expected.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        total = NextToken(tile_bytes=4 * VOCABULARY * 2).total(
            Context({"labels": labels}, Outputs(ours, head.bfloat16()))
        )
    assert total.dtype is torch.float32
    torch.testing.assert_close(total, expected.detach(), rtol=1e-2, atol=1e-2)
    total.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-2, atol=2e-2)


def test_a_module_that_is_no_plain_linear_is_called_instead():
    hidden, labels, head = _case(torch.float32)
    wrapped = nn.Sequential(head)
    supervised = labels[0, 1:] != IGNORE
    losses = token_losses(hidden[0, :-1][supervised], labels[0, 1:][supervised], wrapped, None)
    torch.testing.assert_close(losses.sum(), _oracle(hidden[:1], labels[:1], head, None)[0])


def test_a_weight_may_move_linearly():
    objective = NextToken(weight={"start": 1.0, "end": 3.0})
    assert [objective.weight(progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]
