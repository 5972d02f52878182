"""Options of generated answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationOptions:
    """Options of the text of one answer."""

    max_new_tokens: int = 128
    """Maximum number of generated tokens."""
    temperature: float = 0.0
    """Sampling temperature; 0 selects greedy decoding."""
    top_p: float = 1.0
    """Probability mass of the tokens that sampling chooses from."""
    top_k: int = 0
    """Number of most probable tokens that sampling chooses from; 0 means all."""
    repetition_penalty: float = 1.0
    """Factor that lowers the scores of tokens that the answer already contains; 1 means no penalty."""
    seed: int = 0
    """Seed of sampling. Each answer has random numbers of its own."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends; the answer contains none of them."""
    top_logprobs: int | None = None
    """Number of alternatives whose log probabilities are returned with those of each token; None: return none."""
