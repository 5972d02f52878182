"""Command `mllm ui`: a page in the browser for questions about images, beside the server of `mllm serve`.

python mllm/pipeline/ui.py --adapter exp/X/latest/adapter
python mllm/pipeline/ui.py --adapter first=exp/X/latest/adapter --adapter second=exp/Y/latest/adapter
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
from mllm.ui.private_folder import private_folder


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    quiet_progress()
    with private_folder() as folder:
        require_packages("ui", "gradio")
        from mllm.ui.serving import serve_page

        serve_page(serve_options(args), args.corrections, folder)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; invalid combinations of options exit with an argparse error."""
    parser = command_parser("ui", "Show a page in the browser for questions about images and corrections of answers.")
    add_serve_options(parser)
    parser.add_argument(
        "--corrections", default="corrections", metavar="DIR", help="folder of kept corrections (default: corrections)"
    )
    args = parser.parse_args(argv)
    check_serve_options(parser, args)
    return args


if __name__ == "__main__":
    sys.exit(run_command(main))
