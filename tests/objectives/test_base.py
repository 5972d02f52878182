"""Tests of `mllm.objectives.base`."""

import pytest
import torch

from mllm.errors import ConfigError
from mllm.objectives.base import Objective
from mllm.objectives.boxes import BoxLoss
from mllm.objectives.masks import MaskLoss


class Constant(Objective):
    """Objective with one item per sample and a loss of 1."""

    def count(self, targets):
        return torch.ones(2)

    def total(self, context):
        return torch.ones(2)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(1, [1.0, 1.0, 1.0]), (0.5, [0.5, 0.5, 0.5]), ({"start": 4, "end": 0}, [4.0, 2.0, 0.0])],
)
def test_a_weight_is_constant_or_goes_from_start_to_end(weight, expected):
    objective = Constant(weight)
    assert [objective.weight(progress) for progress in (0.0, 0.5, 1.0)] == expected


@pytest.mark.parametrize("weight", [{"start": 1.0}, {"start": 1.0, "stop": 2.0}, {}])
def test_an_invalid_weight_is_refused(weight):
    with pytest.raises(ConfigError, match=r"an objective's weight is a number or dict\(start=..., end=...\)"):
        Constant(weight)


@pytest.mark.parametrize(
    "weight", [0, -1, float("nan"), float("inf"), {"start": 0, "end": 0}, {"start": 1, "end": -0.5}]
)
def test_a_weight_that_maximizes_a_loss_or_trains_nothing_is_refused(weight):
    with pytest.raises(ConfigError, match="an objective's weight must be at least 0 and finite, and not 0 throughout"):
        Constant(weight)


@pytest.mark.parametrize("factors", [dict(l1=0, giou=0), dict(l1=-1), dict(giou=float("nan"))])
def test_factors_of_a_loss_are_those_of_a_weight(factors):
    with pytest.raises(ConfigError, match="the factors l1 and giou of BoxLoss must be at least 0"):
        BoxLoss(**factors)
    with pytest.raises(ConfigError, match="the factors bce and dice of MaskLoss must be at least 0"):
        MaskLoss(**dict(zip(("bce", "dice"), (factors.get("l1", 1), factors.get("giou", 1)), strict=True)))


def test_an_objective_needs_count_and_total():
    with pytest.raises(TypeError, match="abstract"):
        Objective()
