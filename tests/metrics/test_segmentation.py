"""Metrics of masks against distances computed by brute force, and the values of empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scores import score

from mllm.metrics.segmentation import HD95, NSD, Dice, IoU
from mllm.structures import Answer, Mark

SHAPE = (24, 32)


def answer(mask: np.ndarray | None) -> Answer:
    return Answer("", () if mask is None else (Mark(mask=mask),))


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[top:bottom, left:right] = True
    return mask


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask with a neighbor outside of it, [N, 2]."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inner)


def test_values_of_two_masks() -> None:
    predicted, true = box(4, 5, 14, 20), box(6, 8, 18, 22)
    predicted[20, 30] = True
    both, union = (predicted & true).sum(), (predicted | true).sum()
    pair = [answer(predicted)], [answer(true)]
    assert score(Dice, *pair)["dice"] == pytest.approx(2 * both / (predicted.sum() + true.sum()))
    assert score(IoU, *pair)["iou"] == pytest.approx(both / union)
    first, second = surface(predicted), surface(true)
    distances = np.linalg.norm(first[:, None] - second[None], axis=2)
    directed = distances.min(axis=1), distances.min(axis=0)
    assert score(HD95, *pair)["hd95_px"] == pytest.approx(max(np.percentile(d, 95) for d in directed), abs=1e-5)
    near = sum((d <= 2).sum() for d in directed) / (len(first) + len(second))
    assert score(NSD, *pair)["nsd@2px"] == pytest.approx(near, abs=1e-6)


def test_empty_masks() -> None:
    """Both empty: best. Only one: worst, and failed if it is the answer's. A mark without a mask is not scored."""
    mask, empty = box(0, 0, 4, 4), box(0, 0, 0, 0)
    answers = [answer(None), answer(empty), answer(mask), answer(None), answer(mask)]
    references = [answer(None), answer(empty), answer(empty), answer(mask), Answer("", (Mark(box=(0, 0, 4, 4)),))]
    assert score(Dice, answers, references) == {"dice": 0.5, "failed": 1, "samples": 4}
    assert score(HD95, answers, references)["hd95_px"] == pytest.approx(math.hypot(*SHAPE) / 2)


def test_masks_of_an_image_are_united_and_images_of_a_sample_are_averaged() -> None:
    left, right = box(0, 0, 8, 4), box(0, 4, 8, 8)
    whole = Answer("", (Mark(mask=left | right), Mark(mask=left, image=1)))
    parts = Answer("", (Mark(mask=left), Mark(mask=right)))
    assert score(Dice, [parts], [whole])["dice"] == pytest.approx((1 + 0) / 2)
