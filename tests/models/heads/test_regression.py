"""Regression head: units, views and refused options."""

import numpy as np
import pytest
import torch
from torch import nn

from mllm.errors import ConfigError
from mllm.models.heads import RegressionHead


def test_the_layers_equal_those_of_gemma_3ncore():
    fusion = RegressionHead(24).fusion
    kinds = [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in fusion] == kinds
    assert [(layer.in_features, layer.out_features) for layer in fusion if isinstance(layer, nn.Linear)] == [
        (48, 512),
        (512, 256),
        (256, 3),
    ]
    assert fusion[3].p == 0.2


def test_an_untrained_head_predicts_the_mean_of_the_training_split():
    torch.manual_seed(0)
    head = RegressionHead(8, measures=["EF", "EDV"]).eval()
    nn.init.zeros_(head.fusion[-1].weight)
    nn.init.zeros_(head.fusion[-1].bias)
    known = {"EF": [40.0, 60.0, 65.0], "EDV": [90.0, 160.0]}
    head.normalize(known)
    assert head(torch.randn(5, 2, 8)).unique(dim=0).squeeze(0).tolist() == pytest.approx([55.0, 125.0])
    assert head.std.tolist() == pytest.approx([np.std(known["EF"], ddof=1), np.std(known["EDV"], ddof=1)])


def test_a_head_per_token_counts_and_means_lose_the_count():
    """Images of 64 tokens, n of which are alike: n is the value. One layer solves it, and normalized means cannot."""
    torch.manual_seed(0)
    counts = torch.randint(1, 60, (64, 1)).float()
    kind = torch.randn(8)
    tokens = (torch.arange(64)[None, :] < counts)[..., None] * kind
    head = RegressionHead(8, measures=["cells"], views=["image"], hidden=16, dropout=0.0, per_token=True)
    head.normalize({"cells": counts.flatten().tolist()})
    optimizer = torch.optim.Adam([one for one in head.parameters() if one.requires_grad], 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        ((head(tokens[:, None]) - counts) / head.std).square().mean().backward()
        optimizer.step()
    assert float((head(tokens[:, None]) - counts).detach().abs().max()) < 1
    # LayerNorm of the mean features is equal for all counts but for its epsilon.
    means = nn.LayerNorm(8)(tokens.mean(dim=1))
    assert float((means - means[:1]).detach().abs().max()) < 0.02


def test_the_sum_of_a_head_per_token_is_computed_by_hand():
    head = RegressionHead(4, measures=["a", "b"], views=["ED", "ES"], hidden=6, per_token=True).eval()
    tokens = torch.randn(3, 2, 9, 4, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(3, 2)
    for sample in range(3):
        for place in range(9):
            read = torch.cat([head.norm(tokens[sample, view, place]) for view in range(2)])
            expected[sample] += head.fusion(read) / 3
    torch.testing.assert_close(head(tokens), expected)


def test_the_order_of_the_views_matters():
    torch.manual_seed(0)
    head = RegressionHead(8).eval()
    features = torch.randn(1, 2, 8)
    assert not torch.allclose(head(features), head(features.flip(1)))


def test_it_computes_in_fp32_under_autocast():
    torch.manual_seed(0)
    head, features = RegressionHead(8).eval(), torch.randn(2, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        actual = head(features.bfloat16())
    assert actual.dtype is torch.float32
    assert torch.equal(actual, head(features.bfloat16().float()))


@pytest.mark.parametrize("known", [{}, {"EF": [50.0]}, {"EF": [50.0, 50.0]}])
def test_a_measure_that_cannot_be_learned_is_refused(known: dict[str, list[float]]):
    with pytest.raises(ConfigError, match="known values of the measure 'EF'"):
        RegressionHead(8, measures=["EF"]).normalize(known)


@pytest.mark.parametrize("wrong", [dict(measures=[]), dict(views=["ED", "ED"])])
def test_empty_and_repeated_names_are_refused(wrong: dict[str, list[str]]):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} of a RegressionHead must be different names"):
        RegressionHead(8, **wrong)


def test_mean_and_std_are_saved_and_never_train():
    head = RegressionHead(8)
    assert {"mean", "std"} <= set(head.state_dict())
    assert not head.mean.requires_grad and not head.std.requires_grad


def test_a_configured_scale_is_not_changed_by_the_training_split():
    head = RegressionHead(8, measures=["EF", "EDV"], scale=dict(EDV=(120.0, 45.0), EF=(55.0, 12.0)))
    head.normalize({"EF": [1.0, 2.0], "EDV": [1.0, 1.0]})
    assert head.mean.tolist() == [55.0, 120.0] and head.std.tolist() == [12.0, 45.0]


@pytest.mark.parametrize("scale", [{}, {"EF": (55.0,)}, {"EF": (55.0, 0.0)}])
def test_a_scale_gives_both_numbers_of_every_measure(scale):
    with pytest.raises(ConfigError, match="scale of a RegressionHead needs mean and standard deviation of every meas"):
        RegressionHead(8, measures=["EF"], scale=scale)


def test_a_scale_of_another_measure_is_refused():
    with pytest.raises(ConfigError, match="has no measure 'EVD': did you mean 'EDV'"):
        RegressionHead(8, measures=["EDV"], scale={"EDV": (120.0, 45.0), "EVD": (120.0, 45.0)})
