"""Plan of a private training: the noise needed for an epsilon, computed before the training and without weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from mllm.config.origins import display_path
from mllm.config.rules.privacy import refuse_large_delta
from mllm.config.schema import PrivacyArgs, RunConfig
from mllm.dataset.builder import build_dataset
from mllm.dataset.loading.poisson import PoissonSampler, units_of
from mllm.engine.privacy.accounting import epsilon_spent, noise_multiplier_for
from mllm.errors import ConfigError
from mllm.models.builder.builder import count_lora
from mllm.private_messages import in_split

EPSILONS = (1.0, 3.0, 8.0)
"""Epsilons of a plan in addition to that of the config."""


@dataclass(frozen=True)
class Row:
    """One row of a plan: an epsilon, the size of a draw, and the noise that they require."""

    epsilon: float
    draw: int
    """Mean number of units of an update."""
    rate: float
    """Probability with which an update draws a unit."""
    updates: int
    sigma: float
    """Standard deviation of the noise divided by `clip_norm`."""

    def noise_to_signal(self, parameters: int) -> float:
        """Return the expected norm of the noise in an update of `parameters` values, divided by that of the signal.

        The norm of the signal is its maximum, `clip_norm`: all gradients are clipped and have the same direction. The
        norm of the noise is `sigma * clip_norm * sqrt(parameters) / draw`.
        """
        return self.sigma * math.sqrt(parameters) / self.draw


@dataclass(frozen=True)
class PrivacyPlan:
    """The rows of a plan and the facts that they depend on."""

    config: str
    """Name of the config."""
    units: int
    """Number of privacy units in the training split."""
    privacy: PrivacyArgs
    parameters: int | None
    """Number of trained values of the LoRA; None if it is unknown without weights."""
    rows: tuple[Row, ...]
    configured: tuple[float, int]
    """Epsilon and draw of the config."""


def plan_privacy(config: RunConfig, epsilons: Sequence[float] = (), draws: Sequence[int] = ()) -> PrivacyPlan:
    """Return the noise for each epsilon and draw. A draw is at most all units.

    Without `epsilons`: 1, 3, 8 and that of the config. Without `draws`: that of the config, a quarter and 4 times it.

    Raises:
        ConfigError: The config has no `privacy_args` or no training split, or its delta is too large for the data.
    """
    privacy, train = config.privacy_args, config.data_args.train
    if privacy is None or train is None:
        missing = "data_args.train" if train is None else "privacy_args"
        raise ConfigError(f"{display_path(config.path)} has no {missing}, so there is no privacy to plan: add it")
    with in_split("train"):
        dataset = build_dataset(train, seed=config.training_args["seed"], where="data_args.train")
    units = units_of(dataset, privacy.unit)
    refuse_large_delta(config, len(units))
    parameters = count_lora(config.model_args)
    draw, target = min(config.training_args["per_device_train_batch_size"], len(units)), privacy.target_epsilon
    sizes = dict.fromkeys(min(size, len(units)) for size in draws or sorted({max(1, draw // 4), draw, draw * 4}))
    pairs = [(epsilon, size) for epsilon in epsilons or sorted({*EPSILONS, target or EPSILONS[0]}) for size in sizes]
    rows = []
    for epsilon, size in tqdm(pairs, desc="noise", leave=False, disable=None):
        rate, updates = _schedule(config, units, size)
        sigma = noise_multiplier_for(epsilon, privacy.target_delta, rate, updates, privacy.accountant)
        rows.append(Row(epsilon, size, rate, updates, sigma))
    if target is None:
        rate, updates = _schedule(config, units, draw)
        assert privacy.noise_multiplier is not None, "the rules require it without target_epsilon"
        sigma = privacy.noise_multiplier
        target = epsilon_spent([(sigma, rate, updates)], privacy.target_delta, privacy.accountant)
        rows.append(Row(target, draw, rate, updates, sigma))
    return PrivacyPlan(config.name, len(units), privacy, parameters, tuple(rows), configured=(target, draw))


def _schedule(config: RunConfig, units: Sequence[Sequence[int]], draw: int) -> tuple[float, int]:
    """Return the sampling rate of units and the number of updates that the trainer makes."""
    rate, training = draw / len(units), config.training_args
    updates = len(PoissonSampler(units, rate, secret=b""))
    if training["max_steps"] > 0:
        return rate, training["max_steps"]
    return rate, math.ceil(training["num_train_epochs"] * updates)


def plan_text(plan: PrivacyPlan) -> str:
    """Return a plan as aligned text. A star marks the row of the config."""
    lora = "" if plan.parameters is None else f"; LoRA with {plan.parameters:,} trained values"
    privacy = plan.privacy
    lines = [
        f"{plan.config}: {plan.units:,} {privacy.unit}s, delta {privacy.target_delta:g}, accountant "
        f"'{privacy.accountant}'{lora}",
        "  epsilon   draw      rate  updates   sigma  noise/signal",
    ]
    for row in plan.rows:
        star = "*" if (row.epsilon, row.draw) == plan.configured else " "
        ratio = "-" if plan.parameters is None else f"{row.noise_to_signal(plan.parameters):.2f}"
        lines.append(
            f"{star} {row.epsilon:7.4g} {row.draw:6,} {row.rate:9.3g} {row.updates:8,} {row.sigma:7.4f} {ratio:>13}"
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
