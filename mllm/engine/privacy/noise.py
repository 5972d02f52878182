"""Gaussian noise and secret seeds for differential privacy."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**15
"""Number of random values that a thread draws at a time. PyTorch adds so few values without threads of its own."""
STREAMS = 16
"""Number of independent generators. They take turns with the blocks, so values do not depend on the number of threads.
"""
ENTROPY = 32
"""Bytes of secret entropy of the noise."""


class Noise:
    """Gaussian noise that is independent of the random state of the run.

    It is drawn on the CPU for every device, in threads, by PCG64DXSM with 256 bits of entropy from the operating
    system, which are not stored, so a resumed run has new noise. The generators of PyTorch take 32 (CPU) or 64 bits of
    a seed.

    Args:
        secure: Draw every value from the cryptographic generator of the operating system. Each value is half the sum of
            four, against attacks on floating-point rounding (arXiv:2107.10138, section 5.1).
        test_seed: Makes the noise a function of (seed, step). For tests only: a known seed voids the guarantee.
    """

    def __init__(self, secure: bool = False, test_seed: int | None = None) -> None:
        assert not (secure and test_seed is not None), "noise is either secure or reproducible"
        self.secure, self.test_seed = secure, test_seed
        self._generators = _generators(int.from_bytes(os.urandom(ENTROPY), "little"))

    def add(self, tensor: Tensor, std: float, step: int) -> None:
        """Add noise of standard deviation `std` to a tensor in place, for the update number `step`."""
        if std == 0:
            return
        if self.test_seed is not None:
            self._generators = _generators((self.test_seed, step))
        blocks = tensor.view(-1).split(BLOCK)
        streams = [blocks[number::STREAMS] for number in range(min(STREAMS, len(blocks)))]
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as threads:
            list(threads.map(partial(self._add_stream, std), streams, self._generators))

    def _add_stream(self, std: float, blocks: Sequence[Tensor], generator: np.random.Generator) -> None:
        """Add noise to the blocks of one generator, drawn in fp64 for tensors of that type, else in fp32."""
        for block in blocks:
            if self.secure:
                values = secure_normal(len(block))
            else:  # NumPy does not hold the interpreter's lock meanwhile
                kind: Any = np.float64 if block.dtype is torch.float64 else np.float32
                values = generator.standard_normal(len(block), dtype=kind)
            block.add_(torch.from_numpy(values).to(block), alpha=std)


def _generators(entropy: int | tuple[int, ...]) -> list[np.random.Generator]:
    """Return independent generators whose seeds depend on all bits of `entropy`; the default pool would keep 128."""
    seeds = np.random.SeedSequence(entropy, pool_size=ENTROPY // 4).spawn(STREAMS)
    return [np.random.Generator(np.random.PCG64DXSM(seed)) for seed in seeds]


def describe_generators(secure: bool, test_seed: int | None) -> dict[str, str]:
    """Return the sources of the noise and of the draws, for the record of a run."""
    noise = "PCG64DXSM of numpy, seeded with 256 bits of the operating system"
    draws = "SHAKE-256 with a secret of 256 bits of the operating system"
    if test_seed is not None:
        return {"noise": "PCG64DXSM of numpy with a known seed", "draws": "SHAKE-256 with a known seed"}
    return {"noise": "random bytes of the operating system" if secure else noise, "draws": draws}


def secure_normal(size: int) -> np.ndarray:
    """Return standard normal values [size], fp64, from the cryptographic generator of the operating system.

    Uniform values with 53 bits are transformed by the Box-Muller method; each result is half the sum of four.
    """
    pairs = 2 * size
    bits = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64).reshape(2, pairs) >> np.uint64(11)
    # In (0, 1], so that the logarithm is finite.
    radius = np.sqrt(-2 * np.log((bits[0] + np.uint64(1)) * 2.0**-53))
    angle = 2 * math.pi * 2.0**-53 * bits[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    values: np.ndarray = normal.reshape(4, size).sum(axis=0) / 2
    return values


def secret_of(test_seed: int | None) -> bytes:
    """Return 32 secret bytes that seed the Poisson draws. The guarantee holds only if the draws are secret."""
    if test_seed is None:
        return secrets.token_bytes(32)
    return hashlib.sha256(f"known to all: {test_seed}".encode()).digest()
