"""Tests of box losses against torchvision, and of sums for every division of a batch."""

import pytest
import torch
from torchvision.ops import generalized_box_iou

from mllm.errors import ConfigError
from mllm.objectives.boxes import BoxLoss, giou
from mllm.structures import Context, Outputs


def random_boxes(*shape: int) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(len(shape))).sort(dim=-2).values
    return corners.flatten(-2)


def context(boxes: torch.Tensor, true: torch.Tensor, known: torch.Tensor) -> Context:
    outputs = Outputs(torch.zeros(len(boxes), 1, 1), torch.nn.Identity(), heads={"box": boxes})
    return Context({"boxes": true, "boxes_known": known}, outputs)


def test_giou_equals_torchvision():
    first, second = random_boxes(40), random_boxes(40, 1)[:, 0]
    expected = generalized_box_iou(first, second).diagonal()
    assert torch.allclose(giou(first, second), expected, atol=1e-5)
    assert expected.min() < -0.2 and expected.max() > 0.3


def test_degenerate_boxes_have_a_finite_loss_and_gradient():
    predictions = torch.tensor([[[0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 0.5]]], requires_grad=True)
    true = torch.tensor([[[0.3, 0.3, 0.3, 0.3], [0.2, 0.2, 0.2, 0.2]]])
    total = BoxLoss().total(context(predictions, true, torch.ones(1, 2, dtype=torch.bool)))
    total.sum().backward()
    assert total.isfinite().all() and predictions.grad.isfinite().all()


def test_the_sum_over_known_boxes_by_hand():
    predictions, true = random_boxes(2, 3).requires_grad_(), random_boxes(2, 3, 1)[:, :, 0]
    known = torch.tensor([[True, False, True], [False, False, False]])
    loss = BoxLoss(l1=2.0, giou=0.5)
    total = loss.total(context(predictions, true, known))
    by_hand = [
        2.0 * (predictions[0, i] - true[0, i]).abs().mean()
        + 0.5 * (1 - generalized_box_iou(predictions[0, i : i + 1], true[0, i : i + 1])[0, 0])
        for i in (0, 2)
    ]
    assert torch.allclose(total, torch.stack([sum(by_hand), torch.tensor(0.0)]), atol=1e-5)
    assert loss.count({"boxes_known": known}).tolist() == [2, 0]
    total.sum().backward()
    assert predictions.grad[known].abs().min() > 0 and not predictions.grad[~known].any()


def test_a_model_without_heads_is_refused():
    with pytest.raises(ConfigError, match=r"model_args.heads has no BoxHead"):
        BoxLoss().count({"labels": torch.zeros(1, 1)})
