"""Metrics of masks against distances computed by brute force, and the values of empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
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


def in_mm(mask: np.ndarray | None, *spacings: tuple[float, float] | None) -> Answer:
    return Answer("", () if mask is None else (Mark(mask=mask),), spacings=spacings)


def test_distances_of_two_lines_are_in_mm_of_pixels_that_are_not_square() -> None:
    """Pixels of 0.5 x 2 mm: three rows are 6 mm (3 pixels), four columns are 2 mm (4 pixels)."""
    row, lower = box(4, 5, 5, 20), box(7, 5, 8, 20)
    column, right = box(4, 5, 20, 6), box(4, 9, 20, 10)
    for masks, millimeters, pixels, near in (((row, lower), 6.0, 3.0, 0.0), ((column, right), 2.0, 4.0, 1.0)):
        prediction, reference = answer(masks[0]), in_mm(masks[1], (0.5, 2.0))
        assert score(HD95, [prediction], [reference]) == {"hd95_mm": millimeters, "failed": 0, "samples": 1}
        assert score(NSD, [prediction], [reference]) == {"nsd@2mm": near, "failed": 0, "samples": 1}
        assert score(HD95, [prediction], [answer(masks[1])])["hd95_px"] == pixels
    # Of masks of which one is empty, the distance is the diagonal of 32 x 24 pixels: 16 x 48 mm.
    assert score(HD95, [answer(None)], [in_mm(row, (0.5, 2.0))])["hd95_mm"] == pytest.approx(math.hypot(16, 48))


def test_distances_in_mm_are_those_of_scaled_coordinates_and_of_monai() -> None:
    monai = pytest.importorskip("monai.metrics")
    predicted, true, spacing = box(4, 5, 14, 20), box(6, 8, 18, 22), (0.7, 1.9)
    pair = [answer(predicted)], [in_mm(true, spacing)]
    first, second = (surface(mask) * (spacing[1], spacing[0]) for mask in (predicted, true))
    distances = np.linalg.norm(first[:, None] - second[None], axis=2)
    directed = distances.min(axis=1), distances.min(axis=0)
    assert score(HD95, *pair)["hd95_mm"] == pytest.approx(max(np.percentile(d, 95) for d in directed), abs=1e-5)
    near = sum((d <= 2).sum() for d in directed) / (len(first) + len(second))
    assert score(NSD, *pair)["nsd@2mm"] == pytest.approx(near, abs=1e-6)
    metric = monai.HausdorffDistanceMetric(percentile=95, include_background=True)
    value = metric(*(torch.tensor(mask)[None, None].float() for mask in (predicted, true)), spacing=spacing[::-1])
    assert score(HD95, *pair)["hd95_mm"] == pytest.approx(float(value), abs=1e-6)


def test_samples_in_mm_and_in_pixels_are_never_averaged() -> None:
    """A sample of two images of which one has no spacing is in pixels."""
    shift = answer(box(4, 5, 20, 6)), box(4, 9, 20, 10)
    references = [in_mm(shift[1], (0.5, 0.5)), in_mm(shift[1]), in_mm(shift[1], (0.5, 0.5), None)]
    figures = score(HD95, [shift[0]] * 3, references)
    assert figures == {"hd95_mm": 2.0, "hd95_px": 4.0, "failed": 0, "samples": 3, "samples_mm": 1, "samples_px": 2}
    assert score(NSD, [shift[0]] * 2, references[:2])["nsd@2mm"] == 1
    assert "hd95_mm" not in score(HD95, [shift[0]], [references[1]])
