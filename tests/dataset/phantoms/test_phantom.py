from __future__ import annotations

import numpy as np
import pytest

from mllm.dataset.phantoms.phantom import MODALITIES, draw
from mllm.errors import ConfigError


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("size", [48, 64, 224, 448])
def test_boxes_match_the_masks_and_lesions_do_not_touch(modality, size):
    for seed in range(4):
        phantom = draw(modality, np.random.default_rng(seed), size)
        assert phantom.image.mode == "RGB"
        assert phantom.image.size == (size, size)
        assert len(phantom.boxes) == len(phantom.masks) <= 5
        for (x1, y1, x2, y2), mask in zip(phantom.boxes, phantom.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert (x1, y1, x2 - 1, y2 - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
            assert 0 < x1 < x2 < size
            assert 0 < y1 < y2 < size
        areas = [mask.sum() for mask in phantom.masks]
        assert areas == sorted(areas, reverse=True)
        if phantom.masks:
            # Touching lesions would count as one, so lesions enlarged by a pixel must not overlap.
            grown = [_grown(mask) for mask in phantom.masks]
            assert np.sum(grown, axis=0).max() == 1


def _grown(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    shifts = [
        padded[1 + dy : 1 + dy + len(mask), 1 + dx : 1 + dx + len(mask)] for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    ]
    return np.any(shifts, axis=0)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_requested_number_of_lesions_is_drawn_and_visible(modality):
    for seed in range(6):
        for count in (0, 1, 4):
            phantom = draw(modality, np.random.default_rng(seed), 224, count)
            assert len(phantom.masks) == count
    with_lesion = draw(modality, np.random.default_rng(3), 224, 1)
    pixels, mask = np.asarray(with_lesion.image, float), with_lesion.masks[0]
    around = np.zeros_like(mask)
    x1, y1, x2, y2 = with_lesion.boxes[0]
    around[max(y1 - 6, 0) : y2 + 6, max(x1 - 6, 0) : x2 + 6] = True
    difference = np.abs(pixels[mask].mean(0) - pixels[around & ~_grown(_grown(mask))].mean(0)).max()
    assert difference > 25


def test_equal_generators_give_equal_images():
    for modality in MODALITIES:
        first, again, other = (draw(modality, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first.image.tobytes() == again.image.tobytes() != other.image.tobytes()
        assert first.boxes == again.boxes


def test_the_width_matches_the_drawn_organ():
    # The chamber is black on brighter speckle and the head bright on black: count pixels along their widest row.
    for seed in range(5):
        head = draw("MRI", np.random.default_rng(seed), 448, 0)
        bright = np.asarray(head.image.convert("L")) > 90
        columns = np.flatnonzero(bright.any(axis=0))
        assert abs((columns[-1] - columns[0] + 1) - head.width) <= 2
        lumen = draw("endoscopy", np.random.default_rng(seed), 448, 0)
        red = np.asarray(lumen.image, int)[..., 0]
        inner = np.s_[100:348, 60:388]  # away from the black corners of the frame
        widest = (red[inner] < 50).sum(axis=1).max()
        assert abs(widest - lumen.width) <= 4
        assert lumen.millimeters == pytest.approx(lumen.width * 60 / 448, rel=0.01)


def _statistics(modality: str, seed: int) -> np.ndarray:
    """Return mean color, fraction of black pixels, and fine and coarse contrast of an image."""
    pixels = np.asarray(draw(modality, np.random.default_rng((seed, 9)), 224).image, np.float64) / 255
    gray = pixels.mean(-1)
    fine = np.abs(np.diff(gray, axis=0)).mean()
    coarse = gray.reshape(16, 14, 16, 14).mean((1, 3))
    return np.array([*pixels.mean((0, 1)), (gray < 0.08).mean(), 5 * fine, coarse.std()])


def test_simple_statistics_distinguish_the_modalities():
    train = {m: np.stack([_statistics(m, seed) for seed in range(8)]) for m in MODALITIES}
    scale = np.concatenate(list(train.values())).std(0)
    centers = np.stack([train[m].mean(0) for m in MODALITIES]) / scale
    right = [
        MODALITIES[int(np.linalg.norm(centers - _statistics(m, seed) / scale, axis=1).argmin())] == m
        for m in MODALITIES
        for seed in range(100, 112)
    ]
    assert np.mean(right) > 0.9


def test_invalid_arguments_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'ultrasound'"):
        draw("Ultrasond", np.random.default_rng(0))
    with pytest.raises(ConfigError, match="image_size 8 is too small"):
        draw("CT", np.random.default_rng(0), 8)
