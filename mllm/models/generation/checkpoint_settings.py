"""Settings of generation in a checkpoint, which change answers beside the options of this program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig


@contextmanager
def without_checkpoint_settings(model: Any) -> Iterator[None]:
    """Replace the generation config of a model by one with `bad_words_ids` alone inside the block.

    transformers takes each option that `generate` does not get from it: a minimum length, forced tokens, beams. BART
    for summaries has a minimum of 56 tokens, and Blenderbot forbids words of the source in the answer.

    `bad_words_ids` belong to the weights: those of Marian's checkpoints are its padding token, whose embedding is 0
    (transformers' page on Marian), so that its logit 0 can be the largest one.
    """
    settings = model.generation_config
    model.generation_config = GenerationConfig(bad_words_ids=settings.bad_words_ids)
    try:
        yield
    finally:
        model.generation_config = settings
