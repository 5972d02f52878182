"""Tests of `mllm.engine.feature_cache`: bit-equal features, and damaged files."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mllm.engine.feature_cache import CachedTeacher, FeatureCache, fingerprint


def _image(seed: int = 0, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


TAPS = {"blocks.0": torch.randn(4, 2, 2), "blocks.1": torch.tensor([[[1e-30, -0.0], [3.0, float("inf")]]])}


def test_cached_tensors_are_bit_equal(tmp_path):
    cache = FeatureCache(tmp_path, "a" * 40)
    assert cache.read([_image()]) is None
    cache.write([_image()], TAPS)
    actual = FeatureCache(tmp_path, "a" * 40).read([_image()])
    assert actual.keys() == TAPS.keys()
    assert all(torch.equal(actual[name].view(torch.int32), tap.view(torch.int32)) for name, tap in TAPS.items())


def test_another_image_mode_or_teacher_has_another_key(tmp_path):
    cache = FeatureCache(tmp_path, "a" * 40)
    cache.write([_image()], TAPS)
    assert cache.read([_image(1)]) is None and cache.read([_image(0, "L")]) is None
    assert cache.read([_image().rotate(90, expand=True)]) is None
    assert FeatureCache(tmp_path, "b" * 40).read([_image()]) is None


@pytest.mark.parametrize("left", [0, 7, 100])
def test_a_damaged_file_counts_as_missing_and_is_replaced(tmp_path, left: int):
    cache = FeatureCache(tmp_path, "a" * 40)
    cache.write([_image()], TAPS)
    path = cache.path([_image()])
    path.write_bytes(path.read_bytes()[:left])
    assert cache.read([_image()]) is None
    cache.write([_image()], TAPS)
    assert cache.read([_image()]) is not None


def test_temporary_files_are_removed(tmp_path):
    cache = FeatureCache(tmp_path, "a" * 40)
    writers = [threading.Thread(target=cache.write, args=([_image()], TAPS)) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with pytest.raises(AttributeError):
        cache.write([_image(1)], {"broken": None})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [cache.path([_image()]).name]


def test_a_fingerprint_depends_on_weights_and_settings():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    first = fingerprint(one, size=448, taps={"b": 1, "a": 2})
    assert first == fingerprint(one, taps={"a": 2, "b": 1}, size=448)
    assert first != fingerprint(one, size=896, taps={"b": 1, "a": 2})
    with torch.no_grad():
        one[0].weight[0, 0] = torch.nextafter(one[0].weight[0, 0], torch.tensor(9.0))
    assert first != fingerprint(one, size=448, taps={"b": 1, "a": 2})
    halves = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).half()
    assert fingerprint(halves) != fingerprint(halves.float())


def test_a_cached_teacher_returns_its_inputs():
    taps = {"a": torch.randn(2, 1, 3, 1, 1)}
    assert CachedTeacher()(**taps).taps == taps
