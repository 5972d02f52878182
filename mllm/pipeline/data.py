"""Command `mllm data`: check every row and every image of a config, and write a page about them.

python mllm/pipeline/data.py config/training_configs/X.py [--workers 4] [--tiny] [--cfg-options a.b=c ...]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import add_override_option, command_parser, run_command
from mllm.pipeline.options import integer

SHOWN = 3
"""Number of rows that the terminal shows for an error; the page has more."""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 1 if the data have errors. No weights are loaded."""
    args = parse(argv)
    from mllm.run.data_check import check_data

    check = check_data(args.config, args.cfg_options, tiny=args.tiny, workers=args.workers)
    for finding in check.findings:
        print(f"{'error' if finding.is_error else 'notice'}: {finding.title}: {finding.count:,}")
        for row in finding.rows[:SHOWN] if finding.is_error else ():
            print(f"  {row}")
    print(f"{check.rows:,} {'row was' if check.rows == 1 else 'rows were'} read; the page is {check.page}")
    return 1 if check.errors else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("data", "Check every row and every image of a config, and write a page about them.")
    parser.add_argument("config", help="a config file")
    parser.add_argument("--tiny", action="store_true", help="replace checkpoints and absent data by tiny ones")
    parser.add_argument(
        "--workers", type=integer(0), default=os.cpu_count() or 1, help="worker processes; 0: none (default: all cores)"
    )
    add_override_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
