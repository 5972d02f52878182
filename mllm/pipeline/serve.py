"""Command `mllm serve`: answer requests of OpenAI's clients with a trained adapter or a whole model.

python mllm/pipeline/serve.py --adapter exp/X/latest/adapter
python mllm/pipeline/serve.py --adapter chest=exp/X/latest/adapter --adapter echo=exp/Y/latest/adapter --port 8001
python mllm/pipeline/serve.py --adapter exp/X/latest/adapter --host 0.0.0.0 --token SECRET
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline.command import command_parser, quiet_progress, run_command
from mllm.pipeline.options import integer
from mllm.serve.limits import Limits

if TYPE_CHECKING:
    from mllm.serve.server import ServeOptions

TOKEN = "MLLM_SERVER_TOKEN"
"""Environment variable with the token, which other users of the machine cannot see in the list of processes."""
PACKAGES = frozenset({"fastapi", "uvicorn", "starlette", "python_multipart", "anyio"})
"""Packages of the extra `serve`."""
DEFAULTS = Limits()


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise ConfigError(f"mllm serve needs the package {error.name}: pip install -e '.[serve]'") from error
    quiet_progress()
    from mllm.serve.server import serve

    serve(serve_options(args))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; invalid combinations of options exit with an argparse error."""
    parser = command_parser("serve", "Answer requests of OpenAI's clients with a trained model.")
    add_serve_options(parser)
    args = parser.parse_args(argv)
    if not args.adapter and not args.model:
        parser.error("set --adapter DIR or --model DIR")
    if args.load_in_4bit and args.load_in_8bit:
        parser.error("--load-in-4bit and --load-in-8bit exclude each other")
    return args


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a server."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="an adapter/ folder or the run folder around it; several ones share their base",
    )
    group.add_argument("--model", metavar="DIR", help="a whole model; with --adapter their base, served as well")
    group.add_argument("--load-in-4bit", action="store_true", default=None, help="store the base's weights in 4 bits")
    group.add_argument("--load-in-8bit", action="store_true", default=None, help="store the base's weights in 8 bits")
    group.add_argument("--batch-size", type=integer(1), default=8, help="answers that are computed together")
    group = parser.add_argument_group("network", f"the token can also be in the variable {TOKEN}")
    group.add_argument("--host", default="127.0.0.1", help="address; another one than 127.0.0.1 needs --token")
    group.add_argument("--port", type=integer(0), default=8000, help="port; 0: any free one")
    group.add_argument("--token", help="token that clients must send (api_key of OpenAI's clients)")
    group = parser.add_argument_group("limits and records")
    group.add_argument("--max-body-mb", type=integer(1), default=DEFAULTS.body >> 20, help="megabytes of a request")
    group.add_argument(
        "--max-pixels", type=integer(1), default=DEFAULTS.pixels, help="pixels of all images of a request"
    )
    group.add_argument("--max-tokens", type=integer(1), default=DEFAULTS.tokens, help="generated tokens of an answer")
    group.add_argument("--queue", type=integer(1), default=DEFAULTS.queue, help="requests that wait or are answered")
    group.add_argument("--keep", metavar="FILE", help="append texts of requests and answers; without it none is stored")


def serve_options(args: argparse.Namespace) -> ServeOptions:
    """Return the options of `mllm.serve.server.serve` for a parsed command line."""
    from mllm.serve.server import ServeOptions

    if args.port > 65535:
        raise ConfigError(f"--port {args.port} is no port: choose one up to 65535")
    return ServeOptions(
        adapters=adapters_of(args.adapter),
        model=args.model,
        host=args.host,
        port=args.port,
        token=args.token or os.environ.get(TOKEN) or None,
        keep=args.keep,
        batch_size=args.batch_size,
        limits=Limits(args.max_body_mb << 20, args.max_pixels, args.max_tokens, queue=args.queue),
        model_args=_model_args(args),
    )


def adapters_of(values: Sequence[str]) -> dict[str, str]:
    """Return the adapters of `--adapter` by name. Raise `ConfigError` if two have the same name."""
    from mllm.predict.library import name_of

    adapters: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or "/" in name or Path(value).is_dir():
            name, path = name_of(value), value
        if not name or not path:
            raise ConfigError(f"--adapter {value} is neither DIR nor NAME=DIR")
        if name in adapters:
            raise ConfigError(f"two adapters have the name '{name}': write --adapter NAME=DIR")
        adapters[name] = path
    return adapters


def _model_args(args: argparse.Namespace) -> dict[str, Any]:
    return {"load_in_4bit": args.load_in_4bit, "load_in_8bit": args.load_in_8bit}


if __name__ == "__main__":
    sys.exit(run_command(main))
