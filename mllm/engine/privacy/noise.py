"""Gaussian noise that nobody can make again, and the secret behind the draws."""

from __future__ import annotations

import hashlib
import math
import os
import secrets

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**20
"""Numbers of secure noise made at a time; each takes some 100 bytes on the way."""


class Noise:
    """Adds Gaussian noise from a generator that is not the run's.

    Its seed comes from the operating system and is kept nowhere, so a resumed run makes fresh noise. With `secure`
    every number comes from the operating system's cryptographic generator; each is half the sum of four, against
    attacks on the last bits of floating point (arXiv:2107.10138, section 5.1). `test_seed` makes the noise a function
    of (seed, step): for tests alone, for whoever knows it can take the noise away.
    """

    def __init__(self, secure: bool = False, test_seed: int | None = None) -> None:
        assert not (secure and test_seed is not None), "noise is either secret or known"
        self.secure, self.test_seed = secure, test_seed
        self._generator: torch.Generator | None = None

    def add(self, tensor: Tensor, std: float, step: int) -> None:
        """Adds noise of standard deviation `std` to a tensor, in place; `step` is the number of the update."""
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
        drawn = torch.empty_like(tensor).normal_(generator=generator)
        tensor.add_(drawn, alpha=std)


def secure_normal(size: int) -> Tensor:
    """`size` standard normal numbers, fp64, from the operating system's cryptographic generator.

    Uniform numbers of 53 bits become normal ones by the method of Box and Muller; half the sum of four is standard
    normal again.
    """
    pairs = 2 * size
    bits = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64).reshape(2, pairs) >> np.uint64(11)
    # In (0, 1]: the logarithm of zero does not exist.
    radius = np.sqrt(-2 * np.log((bits[0] + np.uint64(1)) * 2.0**-53))
    angle = 2 * math.pi * 2.0**-53 * bits[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(normal.reshape(4, size).sum(axis=0) / 2)


def secret_of(test_seed: int | None) -> bytes:
    """32 bytes that decide who is drawn: secret, because the guarantee is reckoned for draws that nobody knows."""
    if test_seed is None:
        return secrets.token_bytes(32)
    return hashlib.sha256(f"known to all: {test_seed}".encode()).digest()
