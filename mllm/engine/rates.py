"""Learning rates and optimizer options after a resume: those of the config, at the position of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

OPTIONS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")
"""Options of an optimizer that come from the config."""


@contextmanager
def rates_of_config(optimizer: Any, scheduler: Any) -> Iterator[None]:
    """Load states of a checkpoint in the block, and restore the options and the schedule of the config after it.

    A checkpoint contains the learning rate of its next update by its own schedule. If the config now has more updates
    or another learning rate, the rate is computed again by the schedule of the config at the update of the checkpoint.
    Schedules that are not a function of the update, such as a reduction on a plateau, keep the rate of the checkpoint.
    """
    options = [{key: group[key] for key in OPTIONS if key in group} for group in optimizer.param_groups]
    bases = list(scheduler.base_lrs) if isinstance(scheduler, LambdaLR) else []
    yield
    for group, values in zip(optimizer.param_groups, options, strict=True):
        group.update(values)
    if isinstance(scheduler, LambdaLR):
        scheduler.base_lrs = bases
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        rates = [base * factor for base, factor in zip(bases, factors, strict=True)]
        scheduler._last_lr = rates
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
