"""Masks of COCO, compared with pycocotools, and damaged ones, which it would write beyond the mask or never end."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mllm.coco_masks import decode_polygons, decode_runs, inspect_polygons, inspect_runs


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
    with pytest.raises(ValueError) as decoded:
        decode_runs(runs)
    with pytest.raises(ValueError) as inspected:
        inspect_runs(runs)
    assert str(inspected.value) == str(decoded.value)


def test_polygons_of_pycocotools():
    polygons = [[2.5, 3, 20, 3, 20, 15.2, 2.5, 15], [25, -4, 45, 5, 30, 30]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 20, 40)))
    assert np.array_equal(decode_polygons(polygons, 40, 20), expected)
    assert decode_polygons(polygons[0], 40, 20).sum() > 100


@pytest.mark.parametrize("coordinate", [1e30, 1e9, -1e5, float("nan"), float("inf"), 12345678901234567890])
def test_a_polygon_far_outside_its_image_is_refused(coordinate):
    for function in (decode_polygons, inspect_polygons):
        with pytest.raises(
            ValueError, match=re.escape(f"a polygon has the coordinate {coordinate:g}, and the image 40 x 20")
        ):
            function([[2, 3, 20, coordinate, 20, 15]], 40, 20)


def test_facts_of_masks_are_those_of_the_decoded_masks():
    polygons = [[2.5, 3, 20, 3, 20, 15.2, 2.5, 15], [25, -4, 45, 5, 30, 30]]
    facts = inspect_polygons(polygons, 40, 20)
    assert (facts.height, facts.width) == decode_polygons(polygons, 40, 20).shape
    assert facts == inspect_polygons(polygons, 40, 20)
    moved = [polygons[0], [*polygons[1][:-1], 29]]
    assert facts.content not in (
        inspect_polygons(moved, 40, 20).content,
        inspect_polygons(polygons[:1], 40, 20).content,
    )
    runs = coco_mask.encode(np.asfortranarray(np.eye(7, 5, dtype=np.uint8)))
    listed = {"size": [7, 5], "counts": [0, 1, 7, 1, 7, 1, 7, 1, 7, 1, 2]}
    assert np.array_equal(decode_runs(listed), np.eye(7, 5)) and inspect_runs(runs) == inspect_runs(listed)
    assert (inspect_runs(runs).height, inspect_runs(runs).width) == (7, 5)
