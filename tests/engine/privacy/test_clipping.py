"""Tests of sums of clipped gradients against norms and factors computed by hand."""

import math

import pytest
import torch
from torch import nn

from mllm.engine.privacy.clipping import ClippedSum

SHAPES = [(3, 2), (2,), (4, 3)]
CLIP = 2.5


@pytest.fixture
def parameters():
    return [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]


@pytest.fixture
def gradients():
    """Gradients of six samples; the norms of some are below the clip norm, and one is zero."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 1.0, 5.0, 0.3, 2.0, 0.0], dtype=torch.float64)[:, None]
    sizes = [math.prod(shape) for shape in SHAPES]
    return [scale * torch.randn(6, size, generator=generator, dtype=torch.float64) for size in sizes]


def by_hand(gradients, owners):
    """Return the clipped sum, one unit at a time, over one concatenated vector."""
    long = torch.cat(gradients, dim=1)
    total = torch.zeros(long.shape[1], dtype=torch.float64)
    for owner in dict.fromkeys(owners):
        vector = sum(long[row] for row in range(len(owners)) if owners[row] == owner)
        norm = math.sqrt(sum(float(number) ** 2 for number in vector))
        total += vector * min(1.0, CLIP / norm) if norm else 0.0
    return total


def rows(gradients, first, last):
    return [part[first:last].clone() for part in gradients]


@pytest.mark.parametrize("cut", [[6], [1] * 6, [2, 4], [5, 1]])
def test_samples_are_clipped_as_vectors_for_every_division(parameters, gradients, cut):
    clipped, start = ClippedSum(parameters, CLIP), 0
    for size in cut:
        clipped.add(rows(gradients, start, start + size))
        start += size
    clipped.finish()
    torch.testing.assert_close(clipped.flat, by_hand(gradients, range(6)), rtol=1e-12, atol=1e-14)
    norms = torch.cat(gradients, dim=1).norm(dim=1)
    assert (norms < CLIP).any() and (norms > CLIP).any()


@pytest.mark.parametrize("cut", [[6], [1] * 6, [2, 4], [4, 2], [3, 3]])
def test_the_samples_of_a_unit_are_summed_before_clipping_for_every_division(parameters, gradients, cut):
    owners = [7, 7, 7, 2, 2, 9]
    clipped, start = ClippedSum(parameters, CLIP), 0
    for size in cut:
        clipped.add(rows(gradients, start, start + size), owners[start : start + size])
        start += size
    clipped.finish()
    expected = by_hand(gradients, owners)
    torch.testing.assert_close(clipped.flat, expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(expected, by_hand(gradients, range(6)), rtol=1e-2)


def test_a_unit_cannot_move_the_sum_further_than_the_clip_norm(parameters, gradients):
    for groups in (None, [[0, 1], [2]]):
        whole, without = (ClippedSum(parameters, CLIP, groups) for _ in range(2))
        whole.add(rows([1e6 * part for part in gradients], 0, 6))
        without.add(rows([1e6 * part for part in gradients], 1, 6))
        assert float((whole.flat - without.flat).norm()) == pytest.approx(CLIP, rel=1e-9)


def test_per_layer_clipping_bounds_every_layer_by_its_norm(parameters, gradients):
    clipped = ClippedSum(parameters, CLIP, [[0, 1], [2]])
    clipped.add(rows(gradients, 0, 6))
    layers, expected = [torch.cat(gradients[:2], dim=1), gradients[2]], []
    for layer in layers:
        total = torch.zeros(layer.shape[1], dtype=torch.float64)
        for vector in layer:
            norm = float(vector.norm())
            total += vector * min(1.0, CLIP / math.sqrt(2) / norm) if norm else 0.0
        expected.append(total)
    torch.testing.assert_close(clipped.flat, torch.cat(expected), rtol=1e-12, atol=1e-14)


def test_gradients_have_the_shapes_of_the_parameters_and_are_divided_by_the_expected_units(parameters, gradients):
    clipped = ClippedSum(parameters, CLIP)
    clipped.add(rows(gradients, 0, 6))
    actual = clipped.gradients(expected=4.0)
    assert [tuple(gradient.shape) for gradient in actual] == SHAPES
    torch.testing.assert_close(torch.cat([gradient.flatten() for gradient in actual]), clipped.flat / 4)


def test_samples_of_a_unit_must_be_adjacent(parameters, gradients):
    with pytest.raises(AssertionError, match="must be adjacent"):
        ClippedSum(parameters, CLIP).add(rows(gradients, 0, 3), [1, 2, 1])
