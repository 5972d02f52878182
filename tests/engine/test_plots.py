"""Tests of `mllm.engine.plots`."""

import numpy as np
import pytest
from PIL import Image

from mllm.engine.plots import plot_loss


def _picture(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=int)


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "eval_loss": 2.0}]])
def test_every_log_can_be_plotted(tmp_path, rows):
    plot_loss(rows, tmp_path / "loss.png")
    assert _picture(tmp_path / "loss.png").shape == (480, 840, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_the_plot_contains_the_losses(tmp_path):
    falling = [{"step": step, "loss": 5.0 - step} for step in range(5)]
    flat = [{**row, "loss": 5.0 if row["step"] == 0 else 1.0} for row in falling]
    for name, rows in (("falling", falling), ("again", falling), ("flat", flat)):
        plot_loss(rows, tmp_path / f"{name}.png")
    falling, again, flat = (_picture(tmp_path / f"{name}.png") for name in ("falling", "again", "flat"))
    assert np.array_equal(falling, again)
    assert (falling != flat).any(axis=2).sum() > 200
