"""Images match the masks, and the masks have the area of the shape."""

import numpy as np
import pytest

from mllm.dataset.phantoms.echo import LABELS, Echo, Probe
from mllm.dataset.phantoms.heart import VIEWS, draw_heart


def echo_of(seed, view="4CH", size=112):
    rng = np.random.default_rng(seed)
    heart = draw_heart(rng, round_heart=False)
    return Echo(heart, Probe(size, 155), rng, view)


@pytest.mark.parametrize("view", VIEWS)
def test_cavities_are_dark_walls_are_bright_and_pixels_around_the_sector_are_black(view):
    for seed in range(6):
        echo = echo_of(seed, view)
        for phase in (0, 1):
            picture, mask = echo.frame(phase).astype(float), echo.mask(phase)
            assert picture.shape == mask.shape == (112, 112)
            cavity, wall = (picture[mask == LABELS[name]] for name in ("cavity", "myocardium"))
            assert wall.mean() > cavity.mean() + 50
            assert wall.std() > 15, "speckle"
            assert (picture[:20, :20] == 0).all() and (picture[-8:, :8] == 0).all() and (picture[:20, -20:] == 0).all()


@pytest.mark.parametrize("view", VIEWS)
def test_masks_have_the_area_of_the_traced_polygon(view):
    for seed in range(4):
        echo = echo_of(seed, view, size=224)
        for phase in (0, 1):
            chords = echo.tracing(phase, 200)[1:]
            polygon = np.concatenate([chords[:, :2], chords[::-1, 2:]])
            x, y = polygon.T
            area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
            assert (echo.mask(phase) == LABELS["cavity"]).sum() == pytest.approx(area, rel=0.015)


def test_a_normal_ventricle_shrinks_and_its_valve_borders_on_the_atrium():
    for seed in range(6):
        echo = echo_of(seed)
        relaxed, contracted = echo.mask(0), echo.mask(1)
        shares = (contracted == 1).sum() / (relaxed == 1).sum()
        # The area is proportional to a power of the volume, which follows from `LENGTHWISE`.
        assert shares == pytest.approx((echo.heart.esv / echo.heart.edv) ** 0.625, rel=0.03)
        below = np.roll(relaxed, -1, axis=0)
        assert ((relaxed == LABELS["cavity"]) & (below == LABELS["atrium"])).any()


def test_equal_seeds_give_equal_images_and_frames_are_similar_but_not_equal():
    one, again, other = echo_of(1), echo_of(1), echo_of(2)
    first, second = one.frame(0), one.frame(0)
    assert np.array_equal(first, again.frame(0))
    assert not np.array_equal(first, other.frame(0))
    assert not np.array_equal(first, second)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.9
