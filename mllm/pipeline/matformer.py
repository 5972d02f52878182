"""Command `mllm matformer`: extract a smaller model from a Gemma 3n without training.

python mllm/pipeline/matformer.py --model google/gemma-3n-E4B-it --matformer E2.98B --out ckpt/gemma-3n-E2.98B-it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import command_parser, run_command
from mllm.pipeline.slice_options import add_slice_options, write_slice_of


def main(argv: Sequence[str]) -> int:
    """Extract the slice of the command line and print the folder of the model."""
    print(write_slice_of(parse(argv)))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("matformer", "Extract a smaller model from a Gemma 3n, without training.")
    add_slice_options(parser)
    parser.add_argument("--model", required=True, help="a Gemma 3n: a folder or a name on the Hub")
    parser.add_argument("--out", required=True, help="folder of the extracted model; empty or absent")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
