"""Groups of command-line options that several commands or tests share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from mllm.models.generation.options import GenerationOptions

SEED_LIMIT = 2**32
"""Seeds are below this value: PyTorch accepts seeds below 2**63, and each row of a file adds 1."""
DEFAULTS = GenerationOptions()
BATCH_SIZE = 4
"""Default number of answers that are computed together."""


def integer(minimum: int) -> Callable[[str], int]:
    """Return an argparse type: an integer of at least `minimum`, which must not be negative."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"'{text}' is not an integer of at least {minimum}")
        return int(text)

    return parse


def add_model_options(parser: argparse.ArgumentParser, server: bool = False) -> None:
    """Add the options that select an adapter or a whole model, or with `server` a server."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--adapter", help="an adapter/ folder, the run folder around it, or a name on the Hub")
    source.add_argument("--model", help="a merged/ folder, or a base model without an adapter")
    parser.add_argument("--base", help="the adapter's base model (default: the one that the adapter names)")
    if server:
        source.add_argument("--server", metavar="URL", help="an OpenAI-compatible server: vLLM, llama.cpp, Ollama")
        group = parser.add_argument_group("server", "its token, if it needs one, is in the variable MLLM_SERVER_TOKEN")
        group.add_argument("--server-model", metavar="NAME", help="a model of the server (default: its only one)")
        group.add_argument("--concurrency", type=integer(1), help="requests at a time (default: 8)")
        group.add_argument("--allow-remote", action="store_true", help="send the data to a server on another machine")


def check_model_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an argparse error if `--base` is set without `--adapter`."""
    if args.base and not args.adapter:
        parser.error("--base requires --adapter")


def check_server_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an argparse error if an option of a server is set without `--server`."""
    if not args.server and (args.server_model or args.concurrency or args.allow_remote):
        parser.error("--server-model, --concurrency and --allow-remote require --server")


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of text generation."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max-new-tokens", type=integer(1), default=DEFAULTS.max_new_tokens, help="maximum length of an answer"
    )
    group.add_argument("--batch-size", type=integer(1), default=BATCH_SIZE, help="questions per batch")
    group.add_argument(
        "--temperature", type=float, default=DEFAULTS.temperature, help="0: greedy decoding; above 0: sampling"
    )
    group.add_argument(
        "--top-p", type=float, default=DEFAULTS.top_p, help="sample from the most probable tokens with this total mass"
    )
    group.add_argument(
        "--top-k", type=int, default=DEFAULTS.top_k, help="sample from this number of most probable tokens; 0: all"
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=DEFAULTS.repetition_penalty,
        help="above 1: tokens of the answer become less probable",
    )
    group.add_argument("--seed", type=int, default=DEFAULTS.seed, help="random seed of sampling")


def generation_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> GenerationOptions:
    """Return the options of generation; exit with an argparse error for values out of range."""
    # NaN fails every comparison, so each range is written as a condition that valid values fulfill.
    if not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1 or args.top_k < 0:
        parser.error("--temperature and --top-k must be 0 or more and finite, --top-p above 0 and at most 1")
    if not 0 < args.repetition_penalty < math.inf:
        parser.error("--repetition-penalty must be above 0 and finite; 1 means no penalty")
    if not 0 <= args.seed < SEED_LIMIT:
        parser.error(f"--seed must be an integer from 0 to {SEED_LIMIT - 1}")
    if args.temperature == 0 and (args.top_p < 1 or args.top_k):
        parser.error("--top-p and --top-k restrict sampling: they require a --temperature above 0")
    return GenerationOptions(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the views of one study."""
    group = parser.add_argument_group("input of a model that predicts measures (part='vision')")
    group.add_argument("--video", help="an echocardiogram: a video or a DICOM cine")
    group.add_argument(
        "--frames",
        dest="view_frames",
        metavar="VIEW=NUMBER,...",
        type=_view_frames,
        help="frames of --video by view, from 0: ED=46,ES=61",
    )
    group.add_argument(
        "--view", metavar="VIEW=FILE", type=_view_file, action="append", default=[], help="an image file: ED=ed.png"
    )


def _view_frames(text: str) -> dict[str, int]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        frames = {name.strip(): int(number) for name, number in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of views and frames: write ED=46,ES=61") from error
    if len(frames) < len(pairs):
        raise argparse.ArgumentTypeError(f"'{text}' names a view twice")
    return frames


def _view_file(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"'{text}' is not a view with its file: write ED=ed.png")
    return name, path
