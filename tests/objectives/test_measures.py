"""Tests of losses of measures against values computed by hand."""

import math

import pytest
import torch

from mllm.errors import ConfigError
from mllm.models.encoding.views import ViewEncoder
from mllm.objectives.measures import MeasureLoss, VolumeConsistency
from mllm.protocols import Bundle
from mllm.structures import Context, Outputs

STD = torch.tensor([10.0, 40.0, 30.0])


def _context(predictions: torch.Tensor, true: list[list[float]]) -> Context:
    values = torch.tensor(true)
    known = values.isfinite()
    targets = {"measures": values.where(known, 0.0), "measures_known": known}
    heads = {"measures": predictions, "measures_std": STD}
    return Context(targets, Outputs(torch.zeros(len(true), 2, 4), heads=heads))


def test_every_error_is_in_standard_deviations():
    predictions = torch.tensor([[50.0, 120.0, 60.0], [65.0, 100.0, 40.0]])
    context = _context(predictions, [[55.0, 100.0, 30.0], [60.0, math.nan, 40.0]])
    total = MeasureLoss().total(context)
    assert total.tolist() == pytest.approx([0.5**2 + 0.5**2 + 1.0, 0.5**2])
    assert MeasureLoss().count(context.targets).tolist() == [3, 2]


def test_an_unknown_measure_has_neither_loss_nor_gradient():
    predictions = torch.tensor([[50.0, math.inf, 60.0], [65.0, 1e30, 40.0]], requires_grad=True)
    context = _context(predictions, [[55.0, math.nan, 60.0], [math.nan] * 3])
    total = MeasureLoss().total(context)
    total.sum().backward()
    assert total[1] == 0 and predictions.grad is not None
    assert predictions.grad[:, 1].tolist() == [0, 0] and predictions.grad[1].tolist() == [0, 0, 0]
    assert predictions.grad[0, 0].item() == pytest.approx(2 * -5 / 100)


def test_volumes_do_not_dominate_ejection_fractions():
    """In raw units, as published, an error of one standard deviation in EDV has sixteen times the weight."""
    predictions = torch.zeros(1, 3, requires_grad=True)
    MeasureLoss().total(_context(predictions, [[10.0, 40.0, 30.0]])).sum().backward()
    assert predictions.grad is not None
    assert (predictions.grad * STD).tolist()[0] == pytest.approx([-2.0, -2.0, -2.0])


def test_consistent_volumes_cost_nothing_and_others_their_distance_in_percent():
    predictions = torch.tensor([[60.0, 100.0, 40.0], [60.0, 100.0, 60.0], [60.0, 100.0, 60.0]])
    context = _context(predictions, [[0.0] * 3, [0.0] * 3, [math.nan] * 3])
    assert VolumeConsistency().total(context).tolist() == pytest.approx([0.0, 2.0, 0.0], abs=1e-5)
    assert VolumeConsistency().count(context.targets).tolist() == [1, 1, 0]


def _bundle(*measures: str) -> Bundle:
    return Bundle(torch.nn.Identity(), ViewEncoder(None, views=["ED", "ES"], measures=measures))


def test_measures_are_matched_by_name_in_any_order():
    predictions = torch.tensor([[100.0, 60.0, 60.0]])
    context = _context(predictions, [[0.0] * 3])
    objective = VolumeConsistency()
    objective.connect(_bundle("EDV", "EF", "ESV"), None)
    assert objective.total(context).item() == pytest.approx((60 - 40) / STD[1].item())
    renamed = VolumeConsistency(names=("LVEF", "EDV", "ESV"))
    renamed.connect(_bundle("EDV", "LVEF", "ESV"), None)
    assert renamed.total(context).item() == pytest.approx((60 - 40) / STD[1].item())


@pytest.mark.parametrize("measures", [["EF"], ["EF", "EDV"], []])
def test_a_head_without_the_three_measures_is_refused_by_name(measures: list[str]):
    with pytest.raises(ConfigError, match="needs the measures EF, EDV, ESV, and the head of the model has"):
        VolumeConsistency().connect(_bundle(*measures), None)
    with pytest.raises(ConfigError, match="names must be the three names of EF, EDV and ESV"):
        VolumeConsistency(names=("EF", "EDV", "EDV"))


def test_an_empty_ventricle_has_a_finite_loss():
    predictions = torch.tensor([[60.0, 0.0, 40.0], [60.0, -5.0, 40.0]], requires_grad=True)
    VolumeConsistency().total(_context(predictions, [[0.0] * 3] * 2)).sum().backward()
    assert predictions.grad is not None and predictions.grad.isfinite().all()


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ConfigError, match=r"MeasureLoss needs a head for measures: set model_args.part='vision'"):
        MeasureLoss().count({"labels": torch.zeros(1, 2)})
    with pytest.raises(ConfigError, match="the model has no RegressionHead"):
        VolumeConsistency().total(Context({}, Outputs(torch.zeros(1, 1, 2))))
