"""Masks of COCO, compared with pycocotools, and damaged ones, which it would write beyond the mask or never end."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mllm.coco_masks import decode_polygons, decode_runs


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 300)])
@pytest.mark.parametrize("density", [0, 0.02, 0.5, 1])
def test_run_lengths_of_pycocotools(size, density):
    mask = np.random.default_rng(0).random(size) < density
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(decode_runs(runs), mask)
    assert np.array_equal(decode_runs({**runs, "counts": runs["counts"].decode()}), mask)
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int))).tolist()
    counts = np.diff([0, *changes, flat.size]).tolist()
    assert np.array_equal(decode_runs({"size": list(size), "counts": counts}), mask)


def test_long_runs_of_pycocotools():
    mask = np.zeros((1000, 3000), bool)
    mask[10:900, 7:2500] = True
    mask[20:30, 40:2000] = False
    assert np.array_equal(decode_runs(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))), mask)


@pytest.mark.parametrize(
    "runs",
    [
        {"size": [4, 4]},
        {"size": [4], "counts": [16]},
        {"size": [4, 4], "counts": [15]},
        {"size": [4, 4], "counts": [0, 17]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4, 4], "counts": [16.0]},
        {"size": [-4, -4], "counts": [16]},
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [4, 4], "counts": "P"},
        {"size": [4, 4], "counts": "oooooooo0"},
        {"size": [4, 4], "counts": "é"},
        {"size": [4, 4], "counts": None},
        [[4, 4], [16]],
        None,
    ],
)
def test_damaged_run_lengths_are_refused(runs):
    with pytest.raises(ValueError):
        decode_runs(runs)


def test_polygons_of_pycocotools():
    polygons = [[2.5, 3, 20, 3, 20, 15.2, 2.5, 15], [25, -4, 45, 5, 30, 30]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 20, 40)))
    assert np.array_equal(decode_polygons(polygons, 40, 20), expected)
    assert decode_polygons(polygons[0], 40, 20).sum() > 100


@pytest.mark.parametrize("coordinate", [1e30, 1e9, -1e5, float("nan"), float("inf"), 12345678901234567890])
def test_a_polygon_far_outside_its_image_is_refused(coordinate):
    with pytest.raises(ValueError, match="a polygon has the coordinate"):
        decode_polygons([[2, 3, 20, coordinate, 20, 15]], 40, 20)
