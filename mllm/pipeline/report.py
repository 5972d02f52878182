"""Command `mllm report`: write report.html of a run or an evaluation again.

python mllm/pipeline/report.py exp/X/latest
mllm report exp/X/latest/evaluation-test
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import command_parser, run_command


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    from mllm.run.report import rewrite_report

    print(f"the report is {rewrite_report(Path(args.run))}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("report", "Write report.html of a run or an evaluation again.")
    parser.add_argument("run", metavar="RUN", help="a run folder, or an output folder of mllm evaluate")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
