"""Tests of `mllm.objectives.base`."""

import pytest
import torch

from mllm.errors import ConfigError
from mllm.objectives.base import Objective


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


def test_an_objective_needs_count_and_total():
    with pytest.raises(TypeError, match="abstract"):
        Objective()
