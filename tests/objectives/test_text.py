"""Tests of the next-token loss against the cross-entropy of PyTorch over full logits."""

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
    with torch.no_grad():
        head.weight.uniform_(-(WIDTH**-0.5), WIDTH**-0.5, generator=generator)
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


def test_counts_leave_out_the_first_token():
    labels = torch.tensor([[5, IGNORE, 7, 8], [IGNORE] * 4])
    assert NextToken().count({"labels": labels}).tolist() == [2, 0]


def test_without_supervision_the_loss_is_zero_with_a_gradient():
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


def test_a_head_that_is_not_a_linear_layer_is_called():
    hidden, labels, head = _case(torch.float32)
    wrapped = nn.Sequential(head)
    supervised = labels[0, 1:] != IGNORE
    losses = token_losses(hidden[0, :-1][supervised], labels[0, 1:][supervised], wrapped, None)
    torch.testing.assert_close(losses.sum(), _oracle(hidden[:1], labels[:1], head, None)[0])


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fast", [True, False])
def test_trained_rows_of_a_frozen_vocabulary(softcap, stored, fast):
    """Reference: autograd over the complete table with these rows, of which some are labels."""
    hidden, labels, head = _case(torch.float32)
    head.requires_grad_(False).to(stored)
    ids = torch.tensor([3, 40, 41, 96])
    labels[0, 5:9] = ids
    rows = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()

    def replaced(module, arguments, logits):
        return logits.float().index_copy(-1, ids, arguments[0].float() @ rows.T)

    vocabulary = head
    if not fast:  # a module that is called, such as one with a LoRA, has the rows by a hook
        vocabulary = nn.Sequential(head)
        head.register_forward_pre_hook(lambda module, arguments: arguments[0].to(stored))
        vocabulary.register_forward_hook(replaced)
    outputs = Outputs(ours, vocabulary, softcap, (ids, rows))
    total = NextToken(tile_bytes=4 * VOCABULARY * 3).total(Context({"labels": labels}, outputs))
    upstream = torch.tensor([1.0, 3.0, 5.0])
    (total * upstream).sum().backward()
    actual, rows.grad = rows.grad, None
    table = head.weight.float().index_copy(0, ids, rows)
    expected = _oracle(theirs, labels, lambda hidden: hidden @ table.T, softcap)
    (expected * upstream).sum().backward()
    # fp16 and bf16 hold 11 and 8 bits.
    near = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[stored]
    torch.testing.assert_close(total, expected, rtol=near, atol=near)
    for mine, true in ((ours.grad, theirs.grad), (actual, rows.grad)):
        assert true.abs().max() > 0.5
        torch.testing.assert_close(mine, true, rtol=near, atol=near * float(true.abs().max()))


def test_only_trained_rows_have_a_gradient():
    """Without LoRA and embeddings the hidden states need no gradient, but the trained rows do."""
    hidden, labels, head = _case(torch.float32)
    head.requires_grad_(False)
    rows = torch.randn(2, WIDTH).requires_grad_()
    outputs = Outputs(hidden, head, None, (torch.tensor([5, 7]), rows))
    NextToken().total(Context({"labels": labels}, outputs)).sum().backward()
    assert rows.grad.abs().max() > 1e-3
    nothing = NextToken().total(Context({"labels": torch.full_like(labels, IGNORE)}, outputs)).sum()
    (zero,) = torch.autograd.grad(nothing, rows)
    assert not zero.any()


def test_a_weight_may_move_linearly():
    objective = NextToken(weight={"start": 1.0, "end": 3.0})
    assert [objective.weight(progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]
