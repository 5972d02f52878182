"""Taps against means computed by hand, and the selection of layers."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mllm.errors import ConfigError
from mllm.models.backbone.taps import Taps, pooled, tap_paths


def test_feature_maps_are_averaged_per_cell():
    maps = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    actual = pooled(maps, 2)
    assert actual.shape == (2, 3, 2, 2) and actual.dtype is torch.float32
    for row in range(2):
        for column in range(2):
            place = maps[:, :, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2].mean(dim=(2, 3))
            torch.testing.assert_close(actual[:, :, row, column], place.float())


@pytest.mark.parametrize("before", [0, 1])
def test_patches_are_in_row_order_after_a_class_token(before: int):
    patches = torch.randn(2, before + 16, 5)
    actual = pooled(patches, 2)
    upper_right = patches[:, before:][:, [2, 3, 6, 7]].mean(dim=1)
    torch.testing.assert_close(actual[:, :, 0, 1], upper_right)
    torch.testing.assert_close(pooled(patches, 1)[:, :, 0, 0], patches[:, before:].mean(dim=1))


class Tower(nn.Module):
    """Tower of 27 layers with two blocks each; every layer adds its number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Identity(), nn.Conv2d(2, 2, 1)) for _ in range(27))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            for block in layer:
                maps = checkpoint(block, maps, use_reentrant=False)
        return maps


def test_the_published_layers_are_the_default_of_a_tower_of_27():
    assert tap_paths(Tower(), "layers", None, 3) == ["layers.8", "layers.17", "layers.26"]
    assert tap_paths(Tower(), "layers", [0, "layers.3.1"], 2) == ["layers.0", "layers.3.1"]


def test_an_absent_layer_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"no layer 27 to tap: layers has 27, from 0 to 26"):
        tap_paths(Tower(), "layers", [27], 1)
    with pytest.raises(ConfigError, match=r"no module 'layer.3' to tap: did you mean layers.3"):
        Taps(Tower(), ["layer.3"], 1)


def test_taps_have_gradients_with_checkpointing():
    tower = Tower()
    taps = Taps(tower, ["layers.0", "layers.26"], grid=2)
    maps = torch.randn(1, 2, 4, 4)
    with taps.recorded() as read_taps:
        last = tower(maps)
        actual = read_taps()
    torch.testing.assert_close(actual["layers.26"], nn.functional.adaptive_avg_pool2d(last, 2))
    torch.testing.assert_close(actual["layers.0"], nn.functional.adaptive_avg_pool2d(tower.layers[0](maps), 2))
    actual["layers.26"].sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())


def test_nothing_is_recorded_outside_the_block():
    tower = Tower()
    taps = Taps(tower, ["layers.0"], grid=1)
    with taps.recorded():
        tower(torch.randn(1, 2, 4, 4))
    tower(torch.randn(1, 2, 4, 4))
    with taps.recorded() as read_taps:
        assert read_taps() == {}
