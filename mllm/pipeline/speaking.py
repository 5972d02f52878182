"""How answers are spoken: the options that the command line has for generation, and the model's answers under them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mllm.structures import Answer, Bundle, Sample


def whole_number(text: str) -> int:
    """A whole number above 0, as argparse asks for it."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def add_speaking(parser: argparse.ArgumentParser) -> None:
    """Adds the options of generation."""
    speaking = parser.add_argument_group("answering")
    speaking.add_argument("--max-new-tokens", type=whole_number, default=128)
    speaking.add_argument("--batch-size", type=whole_number, default=4, help="questions answered at a time")
    speaking.add_argument("--temperature", type=float, default=0.0, help="0: the most likely answer; above: sampled")
    speaking.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest with this probability")
    speaking.add_argument("--top-k", type=int, default=0, help="sample from so many of the likeliest; 0: from all")
    speaking.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1: say again less what the answer has said already"
    )
    speaking.add_argument("--seed", type=int, default=0, help="of the sampling")


def check_speaking(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuses values that mean nothing, as argparse does."""
    if arguments.temperature < 0 or not 0 < arguments.top_p <= 1 or arguments.top_k < 0:
        parser.error("--temperature and --top-k must be 0 or more, --top-p above 0 and at most 1")
    if arguments.repetition_penalty <= 0:
        parser.error("--repetition-penalty must be above 0; 1 is none")
    if arguments.temperature == 0 and (arguments.top_p < 1 or arguments.top_k):
        parser.error("--top-p and --top-k choose what is sampled from: set a --temperature above 0 with them")


def answers(bundle: Bundle, samples: Sequence[Sample], arguments: argparse.Namespace, shift: int = 0) -> list[Answer]:
    """The model's answers; `shift` keeps later ones from drawing the same random numbers as earlier ones."""
    from mllm.models.measuring import answers as answered

    sampled = {"temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": arguments.top_k}
    return answered(
        bundle,
        samples,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed + shift,
        progress=False,
        **({"do_sample": True, **sampled} if arguments.temperature > 0 else {}),
    )
