"""Settings of generation in a checkpoint, which would change answers beside the options of this program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig


@contextmanager
def without_checkpoint_settings(model: Any) -> Iterator[None]:
    """Replace the generation config of a model by an empty one inside the block.

    transformers takes each option that `generate` does not get from it: a minimum length, forbidden or forced tokens,
    beams. BART for summaries has a minimum of 56 tokens, and Blenderbot forbids words of the source in the answer.
    """
    settings = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
