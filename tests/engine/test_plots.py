"""Tests of `mllm.engine.plots`."""

import numpy as np
import pytest
from PIL import Image

from mllm.engine.builder import term_labels
from mllm.engine.plots import plot_loss


def _picture(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=int)


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "eval_loss": 2.0}]])
def test_every_log_can_be_plotted(tmp_path, rows):
    plot_loss(rows, tmp_path / "loss.png", {})
    assert _picture(tmp_path / "loss.png").shape == (480, 840, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_the_plot_contains_the_losses(tmp_path):
    falling = [{"step": step, "loss": 5.0 - step} for step in range(5)]
    flat = [{**row, "loss": 5.0 if row["step"] == 0 else 1.0} for row in falling]
    for name, rows in (("falling", falling), ("again", falling), ("flat", flat)):
        plot_loss(rows, tmp_path / f"{name}.png", {})
    falling, again, flat = (_picture(tmp_path / f"{name}.png") for name in ("falling", "again", "flat"))
    assert np.array_equal(falling, again)
    assert (falling != flat).any(axis=2).sum() > 200


def test_the_terms_of_several_objectives_are_drawn_in_their_own_colors(tmp_path):
    """The second term has its color, with training and validation; a log without it has none of this color."""
    rows = [{"step": step, "loss": 5.0 - step, "box": 1.0, "mask": 0.5 - step / 10} for step in range(4)]
    labels = term_labels({"box": {"type": "Boxes"}, "mask": {"type": "Masks", "weight": {"start": 2, "end": 0.5}}})
    assert labels == {"box": "box (weight 1)", "mask": "mask (weight 2 to 0.5)"}
    orange = []
    for terms in (labels, {"box": labels["box"]}):
        plot_loss([*rows, {"step": 3, "eval_loss": 2.0, "eval_mask": 0.4}], tmp_path / "loss.png", terms)
        picture = _picture(tmp_path / "loss.png")
        assert picture.shape == (480, 1320, 3)
        orange.append((np.abs(picture - (255, 127, 14)).max(axis=2) < 3)[:, 660:].sum())  # C1 of matplotlib
    assert orange[0] > orange[1] == 0
