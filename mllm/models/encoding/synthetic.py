"""Artificial samples in the shape of the data, for the checks before a private training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mllm.structures import Sample, Turn

WORDS = ["these", "synthetic", "words", "stand", "where", "the", "private", "data", "will", "stand"]
SIDE = 64
"""Side of an image in pixels."""


def synthetic_samples(count: int, words: int, reads_images: bool) -> list[Sample]:
    """Return `count` conversations of noise images and words, each half as long as the one before.

    The first answer has `words` words, so its tokens reach the maximal length of a sample. With `reads_images`, the
    last sample has an image, and so has every second one before it.
    """
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        images = [Image.fromarray(noise)] if reads_images and number % 2 == (count - 1) % 2 else []
        answer = [WORDS[index % len(WORDS)] for index in range(max(2, words >> number))]
        question = f"Synthetic sample {number + 1}: what stands here?"
        samples.append(
            Sample([Turn("user", question), Turn("assistant", " ".join(answer))], images, source="a synthetic sample")
        )
    return samples


def synthetic_views(count: int, views: Sequence[str], measures: Sequence[str]) -> list[Sample]:
    """Return `count` samples of noise images with the given view names. All measures equal the sample's number."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(1, count + 1):
        images = [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in views]
        values = dict.fromkeys(measures, float(number))
        samples.append(Sample([], images, views=list(views), measures=values, source="a synthetic sample"))
    return samples
