"""Sampling of tokens with a separate random generator for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

LEAST_TEMPERATURE = 1e-6
"""Least divisor of logits. Smaller ones would overflow, and tokens whose logits differ are as with this one."""


@dataclass(frozen=True)
class Sampling:
    """Options of sampling."""

    temperature: float
    top_p: float
    """Probability mass of the tokens to choose from."""
    top_k: int
    """Number of tokens to choose from. 0: all."""
    seed: int

    def processors(self, numbers: Sequence[int]) -> list[LogitsProcessor]:
        """Return the processors that sample a token for each row of a batch, whose samples have these numbers."""
        generators = [generator_of(self.seed, number) for number in numbers]
        return [*warpers(self.temperature, self.top_p, self.top_k), SeededSampler(generators)]


def warpers(temperature: float, top_p: float, top_k: int) -> list[LogitsProcessor]:
    """Return the processors that change the distribution from which a token is sampled."""
    processors: list[LogitsProcessor] = []
    if temperature != 1:
        processors.append(TemperatureLogitsWarper(max(temperature, LEAST_TEMPERATURE)))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    return processors


def generator_of(seed: int, number: int) -> np.random.Generator:
    """Return the random numbers of the sample with a number."""
    return np.random.default_rng([abs(seed), int(seed < 0), number])


class SeededSampler(LogitsProcessor):
    """Sampling by the inverse of the cumulative distribution, with one random number per row and token.

    The logits of all tokens but the sampled one become -inf.

    Args:
        generators: Random numbers of each row.
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits [B, vocabulary] with one finite value in each row."""
        cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
        uniform = torch.tensor([[generator.random()] for generator in self.generators], dtype=torch.float64)
        # Below the total, which rounding keeps from being exactly 1. A token of probability 0 is never chosen.
        threshold = uniform.to(scores.device) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True).clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)
