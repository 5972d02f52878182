"""Tests of mask losses against a computation per pixel."""

import math

import pytest
import torch

from mllm.errors import ConfigError
from mllm.objectives.masks import MaskLoss, soft_dice
from mllm.structures import Context, Outputs


def context(logits: torch.Tensor, true: torch.Tensor, known: torch.Tensor) -> Context:
    outputs = Outputs(torch.zeros(len(logits), 1, 1), torch.nn.Identity(), heads={"mask": logits})
    return Context({"masks": true, "masks_known": known}, outputs)


def test_the_sum_over_known_masks_by_hand():
    torch.manual_seed(0)
    logits, true = torch.randn(2, 2, 3, 3, requires_grad=True), torch.rand(2, 2, 3, 3) > 0.6
    known = torch.tensor([[True, True], [False, True]])
    loss = MaskLoss(bce=2.0, dice=0.5)
    total = loss.total(context(logits, true, known))
    expected = []
    for sample in range(2):
        value = 0.0
        for mark in range(2):
            if not known[sample, mark]:
                continue
            pixels = [
                (1 / (1 + math.exp(-float(x.detach()))), bool(t))
                for x, t in zip(logits[sample, mark].flatten(), true[sample, mark].flatten(), strict=True)
            ]
            bce = sum(-math.log(p if t else 1 - p) for p, t in pixels) / 9
            dice = (2 * sum(p for p, t in pixels if t) + 1) / (
                sum(p for p, _ in pixels) + sum(t for _, t in pixels) + 1
            )
            value += 2.0 * bce + 0.5 * (1 - dice)
        expected.append(value)
    assert torch.allclose(total, torch.tensor(expected), atol=1e-5)
    assert loss.count({"masks_known": known}).tolist() == [2, 1]
    total.sum().backward()
    assert logits.grad is not None and not logits.grad[~known].any() and logits.grad[known].abs().min() > 0


def test_dice_is_one_for_equal_masks_also_empty_ones():
    masks = torch.stack([torch.zeros(4, 4), torch.eye(4)])
    assert torch.allclose(soft_dice(masks, masks), torch.ones(2))
    assert soft_dice(torch.ones(4, 4), torch.zeros(4, 4)) < 0.1


def test_extreme_logits_stay_finite():
    logits = torch.full((1, 1, 2, 2), 1e4, requires_grad=True)
    total = MaskLoss().total(context(logits, torch.zeros(1, 1, 2, 2), torch.ones(1, 1, dtype=torch.bool)))
    total.sum().backward()
    assert total.isfinite().all() and logits.grad.isfinite().all()


def test_a_model_without_a_mask_head_is_refused():
    with pytest.raises(ConfigError, match="model_args.heads has no MaskHead"):
        MaskLoss().count({"labels": torch.zeros(1, 1)})
