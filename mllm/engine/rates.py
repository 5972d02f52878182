"""Learning rates: those of the config after a resume, and the first ones of a warmup."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

OPTIONS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")
"""Options of an optimizer that come from the config."""


def options_of(optimizer: Any) -> list[dict[str, Any]]:
    """Return the options of each parameter group of an optimizer."""
    return [{key: group[key] for key in OPTIONS if key in group} for group in optimizer.param_groups]


@contextmanager
def rates_of_config(optimizer: Any, scheduler: Any, options: list[dict[str, Any]]) -> Iterator[None]:
    """Load states of a checkpoint in the block, and restore the options and the schedule of the config after it.

    `options` are those of the config, see `options_of`.

    A checkpoint contains the learning rate of its next update by its own schedule. If the config now has more updates
    or another learning rate, the rate is computed again by the schedule of the config at the update of the checkpoint.
    Schedules that are not a function of the update, such as a reduction on a plateau, keep the rate of the checkpoint.
    """
    bases = list(scheduler.base_lrs) if isinstance(scheduler, LambdaLR) else []
    yield
    for group, values in zip(optimizer.param_groups, options, strict=True):
        group.update(values)
    if isinstance(scheduler, LambdaLR):
        scheduler.base_lrs = bases
        _set_rates(scheduler, bases, scheduler.last_epoch)


def start_above_zero(scheduler: Any, warmup: int) -> None:
    """Change a schedule whose first rate is 0: update k of a linear warmup of N updates has k / (N + 1) of the rate.

    transformers gives it (k - 1) / N, so the first update changes nothing. The rates after the warmup stay as they are.
    """
    if not isinstance(scheduler, LambdaLR) or any(factor(0) > 0 for factor in scheduler.lr_lambdas):
        return
    scheduler.lr_lambdas = [_shifted(factor, warmup) for factor in scheduler.lr_lambdas]
    _set_rates(scheduler, scheduler.base_lrs, step=0)


def _set_rates(scheduler: LambdaLR, bases: Sequence[Any], step: int) -> None:
    """Set the rates of the optimizer to those of a step of its schedule."""
    rates = [base * factor(step) for base, factor in zip(bases, scheduler.lr_lambdas, strict=True)]
    scheduler._last_lr = list(rates)
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _shifted(factor: Callable[[Any], float], warmup: int) -> Callable[[int], float]:
    """Return a factor whose warmup begins one update earlier and ends at the same update."""
    return lambda step: factor(warmup * (step + 1) / (warmup + 1) if step < warmup else step)
