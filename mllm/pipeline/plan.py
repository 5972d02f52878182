"""Command `mllm plan`: the noise of a private training for given epsilons, before it begins.

python mllm/pipeline/plan.py config/training_configs/X.py --privacy [--epsilon 1 3 8] [--draw 64 256] [--tiny]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline.command import command_parser, quiet_progress, run_command

EPSILONS = (1.0, 3.0, 8.0)
"""Epsilons of the table beside the one of the config."""


@dataclass(frozen=True)
class Row:
    """One row of the table: an epsilon, the size of a draw, and the noise that follows."""

    epsilon: float
    draw: int
    """Mean number of units of an update."""
    rate: float
    steps: int
    sigma: float

    def loudness(self, numbers: int) -> float:
        """Return the expected norm of the noise in an update of `numbers` values, divided by the largest signal norm.

        The largest norm of the signal is `clip_norm`: all gradients are clipped and have the same direction. The norm
        of the noise is `sigma * clip_norm * sqrt(numbers) / draw`.
        """
        return self.sigma * math.sqrt(numbers) / self.draw


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code. No weights are loaded."""
    arguments = parse(argv)
    quiet_progress()
    from mllm.config.rules.privacy import refuse_large_delta
    from mllm.dataset.builder import build_dataset
    from mllm.dataset.loading.poisson import units_of
    from mllm.models.builder.builder import count_lora
    from mllm.run.prepare import prepare_args

    config, _ = prepare_args(arguments.config, arguments.cfg_options, tiny=arguments.tiny)
    privacy, train = config.privacy_args, config.data_args.train
    if privacy is None or train is None:
        missing = "data_args.train" if train is None else "privacy_args"
        raise ConfigError(f"{arguments.config} has no {missing}, so there is no privacy to plan: add it")
    dataset = build_dataset(train, seed=config.training_args["seed"], where="data_args.train")
    units = units_of(dataset, privacy.unit)
    refuse_large_delta(config, len(units))
    numbers = count_lora(config.model_args)
    own = min(config.training_args["per_device_train_batch_size"], len(units))
    draws = arguments.draw or sorted({max(1, own // 4), own, own * 4})
    target = privacy.target_epsilon
    epsilons = arguments.epsilon or sorted({*EPSILONS, target or EPSILONS[0]})
    rows = plan(units, draws, epsilons, config.training_args, privacy)
    if target is None:
        rows.append(config_row(units, own, config.training_args, privacy))
        target = rows[-1].epsilon
    trains = "" if numbers is None else f"; a LoRA of {numbers:,} numbers trains"
    print(
        f"{config.name}: {len(units):,} {privacy.unit}s, delta {privacy.target_delta:g}, accountant "
        f"'{privacy.accountant}'{trains}"
    )
    print(table(rows, numbers, (target, own)))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("plan", "Predict the noise of a private training before it begins.")
    parser.add_argument("config", help="a config with privacy_args")
    parser.add_argument("--privacy", action="store_true", required=True, help="plan the noise that reaches an epsilon")
    parser.add_argument(
        "--epsilon", nargs="+", type=_positive, help="epsilons (default: 1, 3, 8 and that of the config)"
    )
    parser.add_argument("--draw", nargs="+", type=_count, help="units of an update (default: the config, / 4, * 4)")
    parser.add_argument("--tiny", action="store_true", help="replace checkpoints and absent data by tiny ones")
    parser.add_argument(
        "--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys"
    )
    return parser.parse_args(argv)


def plan(
    units: Sequence[Any], draws: Sequence[int], epsilons: Sequence[float], training: dict[str, Any], privacy: Any
) -> list[Row]:
    """Return a row for each epsilon and draw, with the updates that the trainer makes. A draw is at most all units."""
    from mllm.engine.privacy.accounting import noise_multiplier_for

    rows = []
    sizes = list(dict.fromkeys(min(draw, len(units)) for draw in draws))
    pairs = [(epsilon, size) for epsilon in epsilons for size in sizes]
    for epsilon, draw in tqdm(pairs, desc="noise", leave=False, disable=None):
        rate, steps = _draws(units, draw, training)
        sigma = noise_multiplier_for(epsilon, privacy.target_delta, rate, steps, privacy.accountant)
        rows.append(Row(epsilon, draw, rate, steps, sigma))
    return rows


def config_row(units: Sequence[Any], draw: int, training: dict[str, Any], privacy: Any) -> Row:
    """Return the row of the `noise_multiplier` of the config."""
    from mllm.engine.privacy.accounting import epsilon_spent

    rate, steps = _draws(units, draw, training)
    spent = epsilon_spent([(privacy.noise_multiplier, rate, steps)], privacy.target_delta, privacy.accountant)
    return Row(spent, draw, rate, steps, privacy.noise_multiplier)


def _draws(units: Sequence[Any], draw: int, training: dict[str, Any]) -> tuple[float, int]:
    """Return the sampling rate of units and the number of updates that the trainer makes."""
    from mllm.dataset.loading.poisson import PoissonSampler

    rate = draw / len(units)
    steps = training["max_steps"]
    updates = len(PoissonSampler(units, rate, secret=b""))
    return rate, steps if steps > 0 else math.ceil(training["num_train_epochs"] * updates)


def table(rows: Sequence[Row], numbers: int | None, own: tuple[float, int]) -> str:
    """Return the rows as aligned text. The row of the config, with epsilon and draw `own`, has a star."""
    lines = ["  epsilon   draw      rate  updates   sigma  noise/signal"]
    for row in rows:
        star = "*" if (row.epsilon, row.draw) == own else " "
        loud = "-" if numbers is None else f"{row.loudness(numbers):.2f}"
        lines.append(
            f"{star} {row.epsilon:7.4g} {row.draw:6,} {row.rate:9.3g} {row.steps:8,} {row.sigma:7.4f} {loud:>13}"
        )
    return "\n".join(
        [
            *lines,
            "",
            "draw: mean number of units of an update (on several processes, their sum);",
            "sigma: standard deviation of the noise divided by clip_norm;",
            "noise/signal: expected norm of the noise of an update divided by the largest norm of its signal;",
            "*: the row of the config.",
        ]
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(run_command(main))
