"""Command `mllm compare`: paired differences of runs on their common samples, with 95 % intervals by patient.

python mllm/pipeline/compare.py exp/A/20261129_104752 exp/B/20261129_120000
mllm compare exp/A/latest/evaluation-test exp/B/latest/evaluation-test --metric accuracy f1 --out compare.json
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
    from dataclasses import asdict

    from mllm.errors import ConfigError
    from mllm.files import write_json
    from mllm.report.compare import compare, comparison_table

    if len(args.runs) < 2:
        raise ConfigError("mllm compare needs two runs or more: name their folders")
    comparison = compare([Path(run) for run in args.runs], args.metric, args.by)
    print(comparison_table(comparison))
    if args.out:
        write_json(Path(args.out), asdict(comparison))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("compare", "Compare runs on their common samples.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or output folders of mllm evaluate")
    parser.add_argument(
        "--metric",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="metrics to compute (default: those of metrics.json of all runs)",
    )
    parser.add_argument(
        "--by",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN",
        help="also compare by modality, task or a column of mllm evaluate --by: sex, or age:18,40,65 with bounds",
    )
    parser.add_argument("--out", help="a file for the comparison as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
