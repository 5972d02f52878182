"""Volumes of the phantom match numerical integration."""

import numpy as np
import pytest

from mllm.dataset.phantoms.heart import FULLNESS, VIEWS, Heart, draw_heart


def hearts(count=12, **options):
    return [draw_heart(np.random.default_rng(seed), **options) for seed in range(count)]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_shape_encloses_the_volume(share):
    for heart in hearts(round_heart=False):
        volume = heart.esv + share * (heart.edv - heart.esv)
        four, two = (heart.ventricle(volume, view) for view in VIEWS)
        assert four.length == two.length
        assert two.half_width / four.half_width == pytest.approx(heart.flatness)
        # Ellipses stacked along the axis, in many thin discs; 1 mL is 1000 cubic mm.
        middles = (np.arange(20000) + 0.5) / 20000
        discs = np.pi * four.half_widths(middles) * two.half_widths(middles) * four.length / 20000
        assert discs.sum() / 1000 == pytest.approx(volume, rel=1e-4)
    assert np.mean(1 - ((middles - 0.62) / 0.62) ** 2) == pytest.approx(FULLNESS, rel=1e-6)


def test_chords_are_perpendicular_to_the_axis_and_end_on_the_border():
    ventricle = Heart(edv=120, esv=50, tilt=-0.2).ventricle(90)
    lines = ventricle.chords(20)
    assert lines.shape == (21, 4)
    axis = lines[0, 2:] - lines[0, :2]
    assert np.hypot(*axis) == pytest.approx(ventricle.length)
    assert np.allclose((lines[1:, 2:] - lines[1:, :2]) @ axis, 0, atol=1e-9)
    assert np.allclose(ventricle.depth_inside(lines[1:, [0, 2]], lines[1:, [1, 3]]), 0, atol=1e-9)
    widths = np.hypot(*(lines[1:, 2:] - lines[1:, :2]).T)
    assert np.pi / 4 * np.sum(widths**2) * ventricle.length / 20 / 1000 == pytest.approx(90, rel=2e-3)


def test_a_contracting_heart_gets_shorter_narrower_and_thicker():
    for heart in hearts():
        full, empty = heart.ventricle(heart.edv), heart.ventricle(heart.esv)
        assert empty.length < full.length
        assert empty.half_width < full.half_width
        assert heart.wall_at(heart.edv) == pytest.approx(heart.wall, abs=1e-3)
        assert heart.wall_at(heart.esv) > heart.wall


def test_a_beat_starts_and_ends_at_the_end_diastolic_volume():
    heart = Heart(edv=100, esv=40)
    assert heart.measures == {"EF": 60, "EDV": 100, "ESV": 40}
    assert [heart.volume_at(phase) for phase in (0, 1, 2)] == pytest.approx([100, 40, 100])
    volumes = [heart.volume_at(phase) for phase in np.linspace(0, 2, 41)]
    assert (np.diff(volumes[:21]) < 0).all()
    assert (np.diff(volumes[20:]) > 0).all()


def test_patients_cover_all_categories_of_ef():
    efs = np.array([heart.ef for heart in hearts(300)])
    counts = np.histogram(efs, [0, 30, 40, 50, 100])[0]
    assert counts.min() >= 15
    assert efs.min() >= 15 and efs.max() <= 75.001
    assert all(55 <= heart.edv <= 240 for heart in hearts(300))
