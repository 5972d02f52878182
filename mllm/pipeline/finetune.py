"""Command `mllm train`: train the model of a config and write its run folder.

python mllm/pipeline/finetune.py config/training_configs/X.py [--tiny] [--resume] [--cfg-options a.b=c ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import add_override_option, command_parser, quiet_progress, run_command


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    quiet_progress()
    from mllm.run.finetune import finetune

    finetune(args.config, args.cfg_options, tiny=args.tiny, resume=args.resume, plans=args.plan)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("train", "Train the model of a config.")
    parser.add_argument("config", help="a Python config, such as config/training_configs/medgemma_cpu_demo.py")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="replace checkpoints and absent data by tiny generated ones; at most 6 updates, and short answers",
    )
    parser.add_argument("--resume", action="store_true", help="continue the last run from its newest checkpoint")
    parser.add_argument(
        "--plan",
        action=argparse.BooleanOptionalAction,
        help="compare the memory with that of `mllm plan` (default: on a GPU)",
    )
    add_override_option(parser, "training_args.max_steps=3")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
