"""Tests of overlaps against torchvision and pycocotools."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.ops import box_iou as torchvision_iou

from mllm.metrics.areas import Box, box_iou, box_of, boxes_of, greedy_overlaps, mask_overlap, union_masks
from mllm.structures import Answer, Mark


def test_box_iou_equals_torchvision():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 60, (40, 2, 2)), axis=1).reshape(40, 4)
    expected = torchvision_iou(torch.tensor(corners), torch.tensor(corners)).numpy()
    boxes = [Box(0, tuple(row)) for row in corners.tolist()]
    actual = [[box_iou(one, other) for other in boxes] for one in boxes]
    assert np.allclose(actual, expected)
    assert 0.1 < (expected > 0).mean() < 0.99


def test_boxes_in_different_images_and_boxes_of_no_area_do_not_overlap():
    corners = (0.0, 0.0, 10.0, 10.0)
    assert box_iou(Box(0, corners), Box(0, corners)) == 1
    assert box_iou(Box(0, corners), Box(1, corners)) == 0
    assert box_iou(Box(0, (5.0, 5.0, 5.0, 9.0)), Box(0, (5.0, 5.0, 5.0, 9.0))) == 0


def test_mask_overlap_equals_pycocotools():
    rng = np.random.default_rng(1)
    one, other = rng.random((2, 30, 50)) < 0.4
    encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (one, other)]
    expected = coco_mask.iou(encoded[:1], encoded[1:], [0])[0, 0]
    common, either = mask_overlap({0: one}, {0: other})
    assert common / either == pytest.approx(expected)
    assert mask_overlap({0: one}, {1: other}) == (0, one.sum() + other.sum())
    assert mask_overlap({}, {0: other}) == (0, other.sum())
    assert mask_overlap({0: one, 1: other}, {0: other, 1: other}) == (common + other.sum(), either + other.sum())


def test_the_box_of_a_mask_is_the_smallest_around_it():
    mask = np.zeros((20, 30), bool)
    mask[4:7, 10:21] = True
    answer = Answer("", (Mark(mask=mask, image=1), Mark(point=(3.0, 3.0)), Mark(mask=np.zeros((20, 30), bool))))
    assert boxes_of(answer) == [Box(1, (10.0, 4.0, 21.0, 7.0))]
    assert box_of(Mark(box=(1.0, 2.0, 3.0, 4.0), mask=mask)) == Box(0, (1.0, 2.0, 3.0, 4.0))


def test_the_masks_of_one_image_are_united():
    left, right = np.zeros((2, 4, 4), bool)
    left[:, :1], right[:, 3:] = True, True
    unions = union_masks(Answer("", (Mark(mask=left), Mark(mask=right), Mark(mask=left, image=2), Mark((0, 0, 1, 1)))))
    assert set(unions) == {0, 2}
    assert (unions[0] == (left | right)).all()
    assert left.sum() == 4, "the answer itself is left as it was"


def test_matching_is_one_to_one_in_order_of_overlap():
    """0 and 1 both overlap a most; 0 has the larger overlap, so 1 is paired with b."""
    table = {("0", "a"): 0.9, ("1", "a"): 0.8, ("1", "b"): 0.3, ("2", "b"): 0.0}
    pairs = greedy_overlaps("012", "ab", lambda one, other: table.get((one, other), 0.0))
    assert pairs == [0.9, 0.3]
    assert greedy_overlaps("", "ab", lambda one, other: 1.0) == []
