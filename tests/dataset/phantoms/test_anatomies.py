from __future__ import annotations

import numpy as np
import pytest

from mllm.dataset.phantoms.anatomies import CT, MRI, Ultrasound, XRay
from mllm.dataset.phantoms.canvas import Canvas


@pytest.mark.parametrize("anatomy", [CT, MRI, XRay, Ultrasound])
def test_gray_anatomies_have_a_region_for_lesions_and_a_width(anatomy):
    for seed in range(5):
        drawn = anatomy(Canvas(128, np.random.default_rng(seed)))
        assert drawn.picture.shape == (128, 128)
        assert 0.03 < drawn.region.mean() < 0.8
        assert 5 < drawn.width < 128
        finished = drawn.finish()
        assert finished.shape == (128, 128)
        assert np.isfinite(finished).all()


def test_a_lesion_changes_only_the_pixels_of_its_mask():
    drawn = CT(Canvas(128, np.random.default_rng(0)))
    before = drawn.picture.copy()
    mask = drawn.canvas.ellipse(0.4, 0, 0.1, 0.1)
    drawn.add_lesion(mask)
    assert (drawn.picture[mask == 0] == before[mask == 0]).all()
    assert np.allclose(drawn.picture[mask == 1], 0.66)
