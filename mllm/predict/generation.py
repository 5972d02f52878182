"""Generation of answers with the options of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mllm.protocols import Bundle
    from mllm.structures import Answer, Sample


@dataclass(frozen=True)
class GenerationOptions:
    """Options of text generation."""

    max_new_tokens: int = 128
    """Maximum number of generated tokens per answer."""
    batch_size: int = 4
    """Number of samples per forward pass."""
    temperature: float = 0.0
    """Sampling temperature; 0 selects greedy decoding."""
    top_p: float = 1.0
    """Probability mass of the tokens that sampling chooses from."""
    top_k: int = 0
    """Number of most probable tokens that sampling chooses from; 0 means all."""
    repetition_penalty: float = 1.0
    """Factor that lowers the scores of tokens that the answer already contains; 1 means no penalty."""
    seed: int = 0
    """Seed of sampling. Each sample has random numbers of its own."""


def generate_answers(
    bundle: Bundle, samples: Sequence[Sample], options: GenerationOptions, numbers: Sequence[int] | None = None
) -> list[Answer]:
    """Return one answer per sample.

    A sampled answer depends on the seed and the number of its sample. `numbers` are those of the samples; None: their
    positions.
    """
    from mllm.models.generation.answers import answers

    sampling = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
    return answers(
        bundle,
        samples,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        numbers=numbers,
        progress=False,
        **({"do_sample": True, **sampling} if options.temperature > 0 else {}),
    )
