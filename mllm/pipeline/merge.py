"""Command `mllm merge`: merge an adapter into its full-precision base and compare the logits of both.

python mllm/pipeline/merge.py --adapter exp/X/latest/adapter --out merged/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import command_parser, quiet_progress, run_command


def main(argv: Sequence[str]) -> int:
    """Merge the adapters of the command line and print the folder of the model."""
    arguments = parse(argv)
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    from mllm.export.merge import merge, merge_several

    options: dict[str, Any] = dict(
        base=arguments.base, precision=arguments.precision, compare=not arguments.skip_parity
    )
    if len(arguments.adapter) == 1 and arguments.weights is None:
        print(merge(arguments.adapter[0], arguments.out, **options))
        return 0
    combination = dict(weights=arguments.weights, combination=arguments.combination, density=arguments.density)
    print(merge_several(arguments.adapter, arguments.out, **combination, **options))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("merge", "Merge an adapter into its full-precision base model.")
    parser.add_argument(
        "--adapter",
        required=True,
        action="append",
        help="an adapter/ folder or a run folder; if repeated, the adapters are combined",
    )
    parser.add_argument("--weights", type=float, nargs="+", help="one number for each adapter (default: 1 each)")
    parser.add_argument(
        "--combination",
        default="cat",
        choices=("cat", "linear", "ties", "dare_linear", "dare_ties"),
        help="method of combination: cat is the exact weighted sum, the others approximate it (PEFT)",
    )
    parser.add_argument("--density", type=float, help="for ties and dare: fraction of the values kept of each adapter")
    parser.add_argument("--out", required=True, help="folder of the merged model; empty or absent")
    parser.add_argument("--base", help="base model, if it is not the one that the adapter names")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="precision of the comparison of logits; the merge itself is in fp32, except if the whole model must be "
        "loaded: bf16 then takes half the memory, and rounds",
    )
    parser.add_argument(
        "--skip-parity",
        action="store_true",
        help="do not compare the logits of the merged model with the adapter's; export_report.json records this",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
