"""Options of the commands that start a server: `mllm serve` and `mllm ui`."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import ConfigError
from mllm.pipeline.options import integer
from mllm.serve.limits import Limits

if TYPE_CHECKING:
    from mllm.serve.server import ServeOptions

TOKEN = "MLLM_SERVER_TOKEN"
"""Environment variable with the token, which other users of the machine cannot see in the list of processes."""
PACKAGES = frozenset({"fastapi", "uvicorn", "starlette", "python_multipart", "anyio", "gradio"})
"""Packages of the extra `serve`."""
DEFAULTS = Limits()


def require_packages(command: str, *names: str) -> None:
    """Raise `ConfigError` if a package of the extra `serve`, or one of `names`, is not installed."""
    for name in ("fastapi", "python_multipart", "uvicorn", *names):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in PACKAGES:
                raise
            raise ConfigError(f"mllm {command} needs the package {error.name}: pip install -e '.[serve]'") from error


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
    group.add_argument(
        "--max-body-mb",
        type=integer(1),
        help=f"megabytes of a request (default: {DEFAULTS.body >> 20}), and of a file that is dropped on the page of "
        f"mllm ui (default: {DEFAULTS.upload >> 20})",
    )
    group.add_argument(
        "--max-pixels", type=integer(1), default=DEFAULTS.pixels, help="pixels of all images of a request"
    )
    group.add_argument("--max-tokens", type=integer(1), default=DEFAULTS.tokens, help="generated tokens of an answer")
    group.add_argument("--queue", type=integer(1), default=DEFAULTS.queue, help="requests that wait or are answered")
    group.add_argument("--keep", metavar="FILE", help="append texts of requests and answers; without it none is stored")


def check_serve_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an argparse error for options that exclude or require each other."""
    if not args.adapter and not args.model:
        parser.error("set --adapter DIR or --model DIR")
    if args.load_in_4bit and args.load_in_8bit:
        parser.error("--load-in-4bit and --load-in-8bit exclude each other")


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
        limits=Limits(
            body=DEFAULTS.body if args.max_body_mb is None else args.max_body_mb << 20,
            upload=DEFAULTS.upload if args.max_body_mb is None else args.max_body_mb << 20,
            pixels=args.max_pixels,
            tokens=args.max_tokens,
            queue=args.queue,
        ),
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
