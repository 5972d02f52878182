"""Command `mllm plan`: compute the noise of a private training for some epsilons, before it begins.

python mllm/pipeline/plan.py config/training_configs/X.py --privacy [--epsilon 1 3 8] [--draw 64 256] [--tiny]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import add_override_option, command_parser, quiet_progress, run_command
from mllm.pipeline.options import integer


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code. No weights are loaded."""
    arguments = parse(argv)
    quiet_progress()
    from mllm.private_messages import call_privately
    from mllm.run.prepare import prepare_args
    from mllm.run.privacy_plan import plan_privacy, plan_text

    config, _ = prepare_args(arguments.config, arguments.cfg_options, tiny=arguments.tiny)
    plan = partial(plan_privacy, config, arguments.epsilon, arguments.draw)
    print(plan_text(call_privately(plan, config.privacy_args is not None)))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("plan", "Predict the noise of a private training before it begins.")
    parser.add_argument("config", help="a config with privacy_args")
    parser.add_argument("--privacy", action="store_true", required=True, help="plan the noise needed for an epsilon")
    parser.add_argument(
        "--epsilon", nargs="+", default=(), type=_positive, help="epsilons (default: 1, 3, 8 and that of the config)"
    )
    parser.add_argument(
        "--draw", nargs="+", default=(), type=integer(1), help="units of an update (default: the config, / 4, * 4)"
    )
    parser.add_argument("--tiny", action="store_true", help="replace checkpoints and absent data by tiny ones")
    add_override_option(parser)
    return parser.parse_args(argv)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


if __name__ == "__main__":
    sys.exit(run_command(main))
