"""Sampling of tokens with a separate random generator for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


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
        processors: list[LogitsProcessor] = []
        if self.temperature != 1:
            processors.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            processors.append(TopPLogitsWarper(self.top_p))
        return [*processors, SeededSampler(self.seed, numbers)]


class SeededSampler(LogitsProcessor):
    """Sampling by the inverse of the cumulative distribution, with one random number per row and token.

    The random numbers of a row depend on the seed and the number of its sample only. The logits of all tokens but the
    sampled one become -inf.
    """

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        self.generators = [np.random.default_rng([abs(seed), int(seed < 0), number]) for number in numbers]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits [B, vocabulary] with one finite value in each row."""
        cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
        uniform = torch.tensor([[generator.random()] for generator in self.generators], dtype=torch.float64)
        # Below the total, which rounding keeps from being exactly 1. A token of probability 0 is never chosen.
        threshold = uniform.to(scores.device) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True).clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)
