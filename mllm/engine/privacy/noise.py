"""Gaussian noise and secret seeds for differential privacy."""

from __future__ import annotations

import hashlib
import math
import os
import secrets

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**20
"""Number of secure random values that are generated at a time; each needs about 100 bytes."""


class Noise:
    """Gaussian noise that is independent of the random state of the run.

    The seed comes from the operating system and is not stored, so a resumed run has new noise.

    Args:
        secure: Draw every value from the cryptographic generator of the operating system. Each value is half the sum of
            four, against attacks on floating-point rounding (arXiv:2107.10138, section 5.1).
        test_seed: Makes the noise a function of (seed, step). For tests only: a known seed voids the guarantee.
    """

    def __init__(self, secure: bool = False, test_seed: int | None = None) -> None:
        assert not (secure and test_seed is not None), "noise is either secure or reproducible"
        self.secure, self.test_seed = secure, test_seed
        self._generator: torch.Generator | None = None

    def add(self, tensor: Tensor, std: float, step: int) -> None:
        """Add noise of standard deviation `std` to a tensor in place, for the update number `step`."""
        if std == 0:
            return
        if self.secure:
            for part in tensor.view(-1).split(BLOCK):
                part.add_(secure_normal(len(part)).to(part), alpha=std)
            return
        generator = self._generator
        if generator is None or generator.device != tensor.device:
            generator = self._generator = torch.Generator(tensor.device).manual_seed(secrets.randbits(63))
        if self.test_seed is not None:
            generator.manual_seed(
                int(np.random.SeedSequence((self.test_seed, step)).generate_state(1, np.uint64)[0] >> 1)
            )
        noise = torch.empty_like(tensor).normal_(generator=generator)
        tensor.add_(noise, alpha=std)


def secure_normal(size: int) -> Tensor:
    """Return standard normal values [size], fp64, from the cryptographic generator of the operating system.

    Uniform values with 53 bits are transformed by the Box-Muller method; each result is half the sum of four.
    """
    pairs = 2 * size
    bits = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64).reshape(2, pairs) >> np.uint64(11)
    # In (0, 1], so that the logarithm is finite.
    radius = np.sqrt(-2 * np.log((bits[0] + np.uint64(1)) * 2.0**-53))
    angle = 2 * math.pi * 2.0**-53 * bits[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(normal.reshape(4, size).sum(axis=0) / 2)


def secret_of(test_seed: int | None) -> bytes:
    """Return 32 secret bytes that seed the draws. The guarantee holds only for secret draws."""
    if test_seed is None:
        return secrets.token_bytes(32)
    return hashlib.sha256(f"known to all: {test_seed}".encode()).digest()
