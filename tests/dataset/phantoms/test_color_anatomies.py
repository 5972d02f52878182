from __future__ import annotations

import numpy as np
import pytest

from mllm.dataset.phantoms.canvas import Canvas
from mllm.dataset.phantoms.color_anatomies import Endoscopy, Fundus, Pathology


@pytest.mark.parametrize("anatomy", [Fundus, Pathology, Endoscopy])
def test_color_anatomies_have_a_region_for_lesions_and_a_width(anatomy):
    for seed in range(5):
        drawn = anatomy(Canvas(128, np.random.default_rng(seed)))
        before = drawn.picture.copy()
        assert before.shape == (128, 128, 3)
        assert 0.2 < drawn.region.mean() < 0.95
        assert 5 < drawn.width < 128
        row, column = np.argwhere(drawn.region)[len(np.argwhere(drawn.region)) // 2]
        mask = drawn.canvas.ellipse(column / 64 - 1, row / 64 - 1, 0.1, 0.1)
        drawn.add_lesion(mask)
        assert (drawn.picture[mask == 0] == before[mask == 0]).all()
        assert np.abs(drawn.picture - before)[mask == 1].mean() > 0.05
        assert np.isfinite(drawn.finish()).all()


def test_pixels_outside_of_the_frame_are_black():
    for anatomy in (Fundus, Endoscopy):
        picture = anatomy(Canvas(128, np.random.default_rng(1))).finish()
        assert all((picture[corner] == 0).all() for corner in [(0, 0), (0, -1), (-1, 0), (-1, -1)])
