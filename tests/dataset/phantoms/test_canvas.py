from __future__ import annotations

import numpy as np
import pytest

from mllm.dataset.phantoms.canvas import Canvas, over


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_an_ellipse_covers_its_area_and_its_edge_has_the_value_one_half(angle):
    canvas = Canvas(300, np.random.default_rng(0))
    mask = canvas.ellipse(0.1, -0.2, 0.5, 0.3, angle)
    assert mask.sum() == pytest.approx(np.pi * 75 * 45, rel=0.005)
    assert mask.min() == 0
    assert mask.max() == 1
    rows, columns = np.nonzero(mask > 0.5)
    assert columns.mean() == pytest.approx(1.1 * 150, abs=1)
    assert rows.mean() == pytest.approx(0.8 * 150, abs=1)


def test_an_ellipse_across_the_border_is_cut_and_one_outside_is_empty():
    canvas = Canvas(100, np.random.default_rng(0))
    assert canvas.ellipse(1, 1, 0.4, 0.4).sum() == pytest.approx(np.pi * 400 / 4, rel=0.01)
    assert canvas.ellipse(3, 3, 0.4, 0.4).sum() == 0


def test_a_wobbly_ellipse_is_not_cut_by_its_window():
    for seed in range(20):
        canvas = Canvas(200, np.random.default_rng(seed))
        mask = canvas.ellipse(0, 0, 0.3, 0.3, wobble=0.12) > 0
        whole = np.flatnonzero(mask.any(axis=0))
        window = np.flatnonzero((canvas.x[0] >= -0.3 / (1 - 0.132) - 0.02) & (canvas.x[0] <= 0.3 / (1 - 0.132) + 0.02))
        assert window[0] < whole[0]
        assert whole[-1] < window[-1]


def test_over_blends_by_the_mask_and_does_not_change_its_input():
    mask = np.zeros((4, 4), np.float32)
    mask[1, 2], mask[2, 2] = 0.5, 1.0
    for picture, value in (
        (np.ones((4, 4)), 3.0),
        (np.ones((4, 4, 3)), (3.0, 3.0, 3.0)),
        (np.ones((4, 4)), 3 * np.ones((4, 4))),
    ):
        result = over(picture, mask, value)
        np.testing.assert_allclose(result, 1 + 2 * (mask if picture.ndim == 2 else mask[..., None] * np.ones(3)))
        assert (picture == 1).all()


def test_noise_and_strokes_have_the_requested_size():
    canvas = Canvas(64, np.random.default_rng(0))
    assert 0.5 < canvas.cloud(8).std() < 1.5
    assert canvas.cloud(100).std() == 0
    line = canvas.strokes([(np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.25)])
    assert line.sum(axis=0).mean() == pytest.approx(8, abs=1)
    dots = canvas.blobs(np.array([[0.0, 0.0], [0.5, 0.5]]), 0.1)
    assert dots[32, 32] == dots[48, 48] == 1
    assert dots[8, 8] == 0
