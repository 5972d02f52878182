"""Tests of the size and the independence of the noise."""

import math

import pytest
import torch
from scipy import stats

from mllm.engine.privacy.noise import BLOCK, ENTROPY, STREAMS, Noise, _generators, secret_of, secure_normal

STD = 0.7 * 1.3
"""Noise multiplier times clip norm."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_normal_and_its_bits_independent(dtype):
    noise = Noise(test_seed=0)  # a fixed draw, so that the test is deterministic
    values = torch.zeros(400_000, dtype=dtype)
    noise.add(values, STD, step=0)
    scaled = values.double().numpy() / STD
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    assert stats.normaltest(scaled).pvalue > 1e-3
    assert stats.kstest(scaled[:-1] + scaled[1:], "norm", args=(0, math.sqrt(2))).pvalue > 1e-3, "neighbors are related"


def test_all_256_bits_of_entropy_change_the_noise():
    """`torch.Generator` on a CPU gives equal noise for seeds s and s + 2^32."""
    draws = {tuple(generator.standard_normal(2)) for bit in range(8 * ENTROPY) for generator in _generators(1 << bit)}
    assert len(draws) == 8 * ENTROPY * STREAMS
    assert ENTROPY * 8 >= 128


def test_the_noise_does_not_depend_on_the_number_of_threads_and_no_block_is_repeated():
    threads, draws = torch.get_num_threads(), []
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            draws.append(torch.zeros((STREAMS + 2) * BLOCK + 5))
            Noise(test_seed=0).add(draws[-1], STD, step=3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*draws)
    first = {block[0].item() for block in draws[0].split(BLOCK)}
    assert len(first) == STREAMS + 3


def test_two_runs_never_share_noise():
    first, second = torch.zeros(8), torch.zeros(8)
    Noise().add(first, 1.0, step=0)
    Noise().add(second, 1.0, step=0)
    assert not (first == second).any()


@pytest.mark.parametrize("secure", [False, True])
def test_the_standard_deviation_of_2000_draws_is_within_3_percent(secure):
    noise = Noise(secure)
    draws = torch.zeros(2000, 40)
    for step, row in enumerate(draws):
        noise.add(row, STD, step)
    assert draws.std().item() == pytest.approx(STD, rel=0.03)
    assert draws.mean().item() == pytest.approx(0, abs=0.03 * STD)
    beyond = (draws.abs() > 2 * STD).double().mean().item()
    assert beyond == pytest.approx(0.0455, abs=0.006), "not normal"
    neighbors = (draws[:, 1:] * draws[:, :-1]).mean().item() / STD**2
    updates = (draws[1:] * draws[:-1]).mean().item() / STD**2
    assert abs(neighbors) < 0.03 and abs(updates) < 0.03, "the draws are not independent"


def test_the_noise_does_not_depend_on_the_seed_of_the_run():
    tensors = []
    for _ in range(2):
        torch.manual_seed(0)
        tensors.append(torch.zeros(100))
        Noise().add(tensors[-1], STD, step=0)
    assert not torch.equal(*tensors)
    before = torch.random.get_rng_state()
    Noise().add(torch.zeros(100), STD, step=0)
    assert torch.equal(torch.random.get_rng_state(), before), "the run's generator must not be used"


def test_with_a_test_seed_the_noise_is_a_function_of_the_step():
    def drawn(seed, *steps):
        noise, tensors = Noise(test_seed=seed), []
        for step in steps:
            tensors.append(torch.zeros(50))
            noise.add(tensors[-1], STD, step)
        return tensors

    first, second = drawn(1, 4, 5)
    assert torch.equal(drawn(1, 5)[0], second)
    assert not torch.equal(first, second)
    assert not torch.equal(drawn(2, 4)[0], first)


def test_no_noise_is_added_for_a_standard_deviation_of_0():
    tensor = torch.ones(3)
    Noise().add(tensor, 0.0, step=0)
    assert torch.equal(tensor, torch.ones(3))


def test_noise_is_added_to_a_tensor_in_its_dtype():
    tensor = torch.full((20000,), 5.0, dtype=torch.float64)
    Noise(secure=True).add(tensor, STD, step=0)
    assert tensor.dtype is torch.float64
    assert tensor.mean().item() == pytest.approx(5.0, abs=0.05)


def test_secure_numbers_are_standard_normal():
    numbers = torch.from_numpy(secure_normal(200_001))
    assert numbers.shape == (200_001,)
    assert numbers.dtype is torch.float64
    assert numbers.isfinite().all()
    # The tolerance is at least six standard deviations of the mean: sqrt(96 / 200,001) = 0.022 for the fourth moment.
    for moment, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert (numbers**moment).mean().item() == pytest.approx(expected, abs=0.14)


def test_random_secrets_differ_and_seeded_ones_do_not():
    assert secret_of(None) != secret_of(None)
    assert secret_of(3) == secret_of(3) != secret_of(4)
    assert {len(secret_of(seed)) for seed in (None, 3)} == {32}
