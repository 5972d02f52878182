"""Made-up samples in the shape of the data, for what is looked at before a private training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mllm.structures import Sample, Turn

WORDS = ["these", "synthetic", "words", "stand", "where", "the", "private", "data", "will", "stand"]
SIDE = 64
"""Pixels of a made-up image's side."""


def synthetic_samples(count: int, longest: int, reads_images: bool) -> list[Sample]:
    """`count` conversations of noise and words that say what they are, each half as long as the one before.

    The first answer has `longest` words, so that its tokens reach the most that a sample may have. Where the model
    reads images, the last sample has one, and every other one before it.
    """
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        images = [Image.fromarray(noise)] if reads_images and number % 2 == (count - 1) % 2 else []
        words = [WORDS[place % len(WORDS)] for place in range(max(2, longest >> number))]
        question = f"Synthetic sample {number + 1}: what stands here?"
        samples.append(
            Sample([Turn("user", question), Turn("assistant", " ".join(words))], images, source="a synthetic sample")
        )
    return samples


def synthetic_views(count: int, views: Sequence[str], measures: Sequence[str]) -> list[Sample]:
    """`count` samples of named views, all noise, for a model that gives numbers; each number is that of the sample."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(1, count + 1):
        images = [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in views]
        told = dict.fromkeys(measures, float(number))
        samples.append(Sample([], images, views=list(views), measures=told, source="a synthetic sample"))
    return samples
