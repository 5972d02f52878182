from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mllm.dataset.augment.affine import Affine, warp_image, warp_marks
from mllm.structures import Mark


def test_the_inverse_reverts_the_map():
    forward = Affine(0.8, -0.6, 3, 1.2, 0.4, -7)
    points = np.random.default_rng(0).normal(size=(5, 2))
    assert np.allclose(forward.inverse().points(forward.points(points)), points)
    assert forward.points(np.array([1.0, 2.0])) == pytest.approx([0.8 - 1.2 + 3, 1.2 + 0.8 - 7])


def test_images_move_by_whole_pixels_onto_black():
    pixels = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    moved = np.asarray(warp_image(Image.fromarray(pixels), Affine(1, 0, 1, 0, 1, -1), (6, 3)))
    assert moved.tolist() == [[0, 5, 6, 7, 8, 0], [0, 9, 10, 11, 12, 0], [0, 0, 0, 0, 0, 0]]


def test_boxes_stay_within_the_canvas():
    (mark,) = warp_marks([Mark(box=(2, 2, 10, 4))], Affine(1, 0, -4, 0, 1, 0), (5, 5))
    assert mark.box == (0, 2, 5, 4)


def test_the_box_of_a_rotated_mark_is_that_of_its_mask():
    y, x = np.mgrid[:81, :81]
    disk = (x - 40) ** 2 + (y - 40) ** 2 <= 30**2
    c = 0.5**0.5
    forward = Affine(c, -c, 40.5, c, c, 40.5 - 2 * c * 40.5)
    tight, loose = warp_marks([Mark((10, 10, 71, 71), disk), Mark((10, 10, 71, 71))], forward, (81, 81))
    assert np.abs(np.subtract(tight.box, (10, 10, 71, 71))).max() <= 1
    assert loose.box[2] - loose.box[0] > 75


def test_points_move_like_the_corners_of_boxes():
    forward = Affine(0.8, -0.6, 8, 1.2, 0.4, -7)
    (point, box) = warp_marks([Mark(point=(10, 20)), Mark(box=(10, 20, 10, 20))], forward, (99, 99))
    assert point.point == pytest.approx((0.8 * 10 - 0.6 * 20 + 8, 1.2 * 10 + 0.4 * 20 - 7))
    assert box.box == pytest.approx((*point.point, *point.point))
    assert point.box is None
    assert point.mask is None


def test_a_point_outside_the_canvas_is_moved_to_its_edge():
    marks = [Mark(point=(2, 2)), Mark(point=(40, 3))]
    moved = warp_marks(marks, Affine(1, 0, -4, 0, 1, 0), (5, 5))
    assert [mark.point for mark in moved] == [(0, 2), (5, 3)]


def test_other_fields_of_a_mark_are_unchanged():
    mask = np.ones((4, 4), np.uint8)
    marks = [Mark((0, 0, 1, 1), mask, (1, 1), image=3), Mark(image=1)]
    moved = warp_marks(marks, Affine(1, 0, 1, 0, 1, 0), (5, 5))
    assert [mark.image for mark in moved] == [3, 1]
    assert (moved[0].box, moved[0].point) == ((1, 0, 2, 1), (2, 1))
    assert moved[0].mask.dtype == bool
    assert moved[0].mask.sum() == 16
    assert moved[1] == marks[1]
