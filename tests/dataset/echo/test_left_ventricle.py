"""Tests of volumes of masks, compared with phantoms and with a cylinder."""

import numpy as np
import pytest
from echo_files import VIEWS, Echo, Probe, draw_heart

from mllm.dataset.echo.left_ventricle import METHOD, biplane_measures, biplane_volume, cut_into_discs
from mllm.errors import DataError

PHASES = {"ED": 0.0, "ES": 1.0}


def masks_of(seed, size=160, columns=1):
    rng = np.random.default_rng(seed)
    heart, probe = draw_heart(rng, round_heart=False), Probe(size, 155)
    masks = {}
    for view in VIEWS:
        echo = Echo(heart, probe, rng, view)
        for moment, phase in PHASES.items():
            masks[view, moment] = echo.mask(phase)[:, ::columns], (probe.spacing * columns, probe.spacing)
    return heart, masks


@pytest.mark.parametrize(("size", "columns"), [(112, 1), (160, 1), (256, 2)])
def test_simpson_recovers_the_volumes_of_the_phantoms(size, columns):
    for seed in range(10):
        heart, masks = masks_of(seed, size, columns)
        measures = biplane_measures(masks)
        assert measures["EDV"] == pytest.approx(heart.edv, rel=0.03)
        assert measures["ESV"] == pytest.approx(heart.esv, rel=0.03)
        assert measures["EF"] == pytest.approx(heart.ef, abs=1.0)


def test_irregular_borders_change_volumes_little():
    """Pixels near the border randomly have the label of a neighbor."""
    rng = np.random.default_rng(0)
    for seed in range(6):
        heart, masks = masks_of(seed)
        rough = {}
        for key, (mask, spacing) in masks.items():
            dy, dx = rng.integers(-1, 2, (2, *mask.shape))
            rows, columns = np.indices(mask.shape)
            rough[key] = mask[(rows + dy) % len(mask), (columns + dx) % len(mask)], spacing
            assert (rough[key][0] != mask).sum() > 100
        assert biplane_measures(rough)["EDV"] == pytest.approx(heart.edv, rel=0.05)
        assert biplane_measures(rough)["ESV"] == pytest.approx(heart.esv, rel=0.05)


def rectangle(width, height):
    """Return a cavity of `width` x `height` pixels with myocardium on all sides except below."""
    mask = np.zeros((height + 20, width + 20), np.uint8)
    mask[7 : height + 10, 7 : width + 13] = 2
    mask[10 : height + 10, 10 : width + 10] = 1
    return mask


def test_a_box_by_hand():
    """10 x 40 pixels of 2 x 1 mm: 20 mm wide; the axis connects the center of the base with a corner."""
    discs = cut_into_discs(rectangle(10, 40), (2.0, 1.0))
    assert discs.length == pytest.approx(np.hypot(40, 10), rel=0.01)
    assert len(discs.widths) == 20
    assert discs.widths.sum() * discs.length / 20 == pytest.approx(20 * 40, rel=0.08)
    narrow = cut_into_discs(rectangle(4, 80), (1.0, 1.0))
    assert np.median(narrow.widths) == pytest.approx(4, rel=0.05)


def test_the_longer_view_determines_the_height_of_the_discs():
    long, short = cut_into_discs(rectangle(4, 80), (1, 1)), cut_into_discs(rectangle(4, 40), (1, 1))
    expected = np.pi / 4 * np.sum(long.widths * short.widths) * long.length / 20 / 1000
    assert biplane_volume(long, short) == biplane_volume(short, long) == pytest.approx(expected)
    assert "20 discs" in METHOD


def test_masks_without_a_ventricle_or_a_base_are_refused():
    with pytest.raises(DataError, match="the mask has no left ventricle"):
        cut_into_discs(np.full((20, 20), 2), (1, 1))
    closed = np.pad(np.full((9, 9), 1), 3, constant_values=2)
    with pytest.raises(DataError, match="closed by myocardium"):
        cut_into_discs(closed, (1, 1))


@pytest.mark.parametrize("shape", ["phantom", "box"])
def test_a_mask_of_the_cavity_alone_is_refused(shape):
    mask = masks_of(0)[1]["4CH", "ED"][0] if shape == "phantom" else rectangle(20, 40)
    cut_into_discs(mask, (1, 1))
    with pytest.raises(DataError, match=r"myocardium \(label 2\) at less than 50% of its border"):
        cut_into_discs(np.where(mask == 1, 1, 0), (1, 1))
    # Only an edge of the myocardium is left.
    part = mask.copy()
    part[np.nonzero(mask == 1)[0].min() + 3 :][mask[np.nonzero(mask == 1)[0].min() + 3 :] == 2] = 0
    with pytest.raises(DataError, match="so its base cannot be found"):
        cut_into_discs(part, (1, 1))
