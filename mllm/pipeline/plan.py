"""Command `mllm plan`: predict the memory, the time and the cost of a training, or its noise with `--privacy`.

python mllm/pipeline/plan.py config/training_configs/X.py [--gpu T4 | --memory 16GB] [--gpus 8] [--price 1.2] [--json F]
python mllm/pipeline/plan.py config/training_configs/X.py --privacy [--epsilon 1 3 8] [--draw 64 256] [--tiny]
"""

from __future__ import annotations

import argparse
import math
import re
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
    return _plan_noise(arguments) if arguments.privacy else _plan_memory(arguments)


def _plan_noise(arguments: argparse.Namespace) -> int:
    from mllm.private_messages import call_privately
    from mllm.run.prepare import prepare_args
    from mllm.run.privacy_plan import plan_privacy, plan_text

    config, _ = prepare_args(arguments.config, arguments.cfg_options, tiny=arguments.tiny)
    plan = partial(plan_privacy, config, arguments.epsilon, arguments.draw)
    print(plan_text(call_privately(plan, config.privacy_args is not None)))
    return 0


def _plan_memory(arguments: argparse.Namespace) -> int:
    from mllm.config.hardware import check_versions
    from mllm.config.reading import read_config
    from mllm.errors import ConfigError
    from mllm.planning.cards import find_card

    check_versions()
    if arguments.gpu is not None:
        find_card(arguments.gpu)  # before imports that take seconds
    read_config(arguments.config, arguments.cfg_options)
    from mllm.files import write_json
    from mllm.planning.answer import answer
    from mllm.planning.render import as_dict, as_text

    result = answer(
        arguments.config,
        arguments.cfg_options,
        gpu=arguments.gpu,
        memory=arguments.memory,
        gpus=arguments.gpus,
        measured=arguments.measured,
        price=arguments.price,
        tiny=arguments.tiny,
    )
    print(as_text(result))
    if arguments.json is not None:
        write_json(Path(arguments.json), as_dict(result))
    if result.refusal is not None:
        raise ConfigError(result.refusal)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("plan", "Predict the memory, the time and the cost of a training before it begins.")
    parser.add_argument("config", help="a config of a training run")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--gpu", metavar="NAME", help="a card such as T4, RTX3090, A100-40 or H100")
    target.add_argument("--memory", metavar="SIZE", type=_size, help="memory of a GPU, such as 16GB (of 2^30 bytes)")
    parser.add_argument("--gpus", type=integer(1), default=1, help="number of GPUs (default: 1)")
    parser.add_argument("--measured", metavar="RUN", help="a run folder, whose speed is used for times")
    parser.add_argument("--price", type=_positive, help="price of a GPU for an hour, for the cost of an epoch")
    parser.add_argument("--json", metavar="FILE", help="write the plan to a JSON file, too")
    parser.add_argument("--tiny", action="store_true", help="replace checkpoints and absent data by tiny ones")
    noise = parser.add_argument_group("noise of a private training")
    noise.add_argument("--privacy", action="store_true", help="plan the noise needed for an epsilon")
    noise.add_argument(
        "--epsilon", nargs="+", default=(), type=_positive, help="epsilons (default: 1, 3, 8 and that of the config)"
    )
    noise.add_argument(
        "--draw", nargs="+", default=(), type=integer(1), help="units of an update (default: the config, / 4, * 4)"
    )
    add_override_option(parser)
    arguments = parser.parse_args(argv)
    if not arguments.privacy and (arguments.epsilon or arguments.draw):
        parser.error("--epsilon and --draw require --privacy")
    return arguments


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def _size(text: str) -> int:
    """Return the bytes of a size such as '16GB' or '16', in units of 2^30 bytes, as GPUs are sold."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:gb|gib|g)?", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 16GB")
    return int(float(match[1]) * 2**30)


if __name__ == "__main__":
    sys.exit(run_command(main))
