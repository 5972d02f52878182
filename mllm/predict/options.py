"""How answers are spoken: the options that the command line has for generation, and the model's answers under them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from mllm.structures import Answer, Bundle, Sample

SEEDS = 2**32
"""Seeds are below it: PyTorch takes larger ones, but none from 2**63 on, and each row of a file adds one."""


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
    # Written so that NaN, which compares with nothing, is refused as well.
    if not 0 <= arguments.temperature < math.inf or not 0 < arguments.top_p <= 1 or arguments.top_k < 0:
        parser.error("--temperature and --top-k must be 0 or more and finite, --top-p above 0 and at most 1")
    if not 0 < arguments.repetition_penalty < math.inf:
        parser.error("--repetition-penalty must be above 0 and finite; 1 is none")
    if not 0 <= arguments.seed < SEEDS:
        parser.error(f"--seed must be a whole number from 0 to {SEEDS - 1}")
    if arguments.temperature == 0 and (arguments.top_p < 1 or arguments.top_k):
        parser.error("--top-p and --top-k choose what is sampled from: set a --temperature above 0 with them")


def answers(bundle: Bundle, samples: Sequence[Sample], arguments: argparse.Namespace, shift: int = 0) -> list[Answer]:
    """The model's answers; `shift` keeps later ones from drawing the same random numbers as earlier ones."""
    from mllm.models.generation.answers import answers as answered

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
