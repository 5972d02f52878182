"""Command `mllm serve`: answer requests of OpenAI's clients with a trained adapter or a whole model.

python mllm/pipeline/serve.py --adapter exp/X/latest/adapter
python mllm/pipeline/serve.py --adapter chest=exp/X/latest/adapter --adapter echo=exp/Y/latest/adapter --port 8001
python mllm/pipeline/serve.py --adapter exp/X/latest/adapter --host 0.0.0.0 --token SECRET
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import command_parser, quiet_progress, run_command
from mllm.pipeline.serve_options import add_serve_options, check_serve_options, require_packages, serve_options


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    require_packages("serve")
    quiet_progress()
    from mllm.serve.server import serve

    serve(serve_options(args))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; invalid combinations of options exit with an argparse error."""
    parser = command_parser("serve", "Answer requests of OpenAI's clients with a trained model.")
    add_serve_options(parser)
    args = parser.parse_args(argv)
    check_serve_options(parser, args)
    return args


if __name__ == "__main__":
    sys.exit(run_command(main))
