"""Questions to a model, with their options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mllm.models.generation.options import GenerationOptions
from mllm.structures import Encoded, Sample


@dataclass(frozen=True)
class Request:
    """One question with its conversation and its options."""

    sample: Sample
    """The turns up to the question, and their images."""
    options: GenerationOptions = field(default_factory=GenerationOptions)
    model: str | None = None
    """Name of the adapter or model; None: the first one."""
    n: int = 1
    """Number of answers."""
    number: int = 0
    """Number of the first answer, from which, with the seed, its random numbers are derived; the next ones follow."""
    on_text: Callable[[int, str], None] | None = None
    """Function that receives the index of an answer and a piece of its text, in the thread that computes the answer."""
    is_cancelled: Callable[[], bool] | None = None
    """Function that returns True if nobody waits for the answers any more."""


@dataclass(frozen=True)
class Prepared:
    """A request whose prompt is encoded."""

    request: Request
    model: str
    """Name of the model that answers."""
    prompt: Encoded
