"""Mean loss of a split, independent of its division into batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mllm.engine.learner import Learner
from mllm.errors import DataError, advised
from mllm.private_messages import error_of
from mllm.structures import Batch, LogicalBatch


def check_failures(batch: LogicalBatch, skip: bool) -> None:
    """Raise `DataError` for the first row that cannot be used, unless `skip` is True."""
    if batch.failures and not skip:
        raise error_of(advised(batch.failures[0].message))


@torch.no_grad()
def mean_losses(
    model: nn.Module,
    learner: Learner,
    batches: Iterable[list[Batch]],
    accelerator: Any,
) -> dict[str, float]:
    """Compute the mean loss per supervised item over all batches of all processes.

    Args:
        model: The learner, wrapped by the accelerator.
        learner: The learner without wrapper.
        batches: Pieces of the batches of this process.
        accelerator: Accelerator of the trainer.

    Returns:
        `loss` and the mean of each objective. Objectives are weighted as at the end of the training, so that losses of
        different epochs are comparable.

    Raises:
        DataError: No item is supervised.
    """
    was_training = model.training
    model.eval()
    names = [name for name, _ in learner.named_objectives()]
    zero = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    totals, counts = dict.fromkeys(names, zero), dict.fromkeys(names, zero)
    for pieces in batches:
        for piece in pieces:
            piece = piece.to(accelerator.device)
            items = learner.counts(piece.targets)
            ones = {name: torch.ones_like(count) for name, count in items.items()}
            terms = model(student=piece.student, targets=piece.targets, teacher=piece.teacher, counts=ones)
            for name, count in items.items():
                counts[name] = counts[name] + count
                totals[name] = totals[name] + terms[name].double()
    model.train(was_training)
    counts = {name: accelerator.reduce(count, "sum") for name, count in counts.items()}
    if not any(counts.values()):
        raise DataError.without_values("no row of the validation split could be used")
    means = {
        name: float(accelerator.reduce(total, "sum") / counts[name].clamp_min(1)) for name, total in totals.items()
    }
    weights = {name: objective.weight(1.0) for name, objective in learner.named_objectives()}
    return {"loss": sum(weights[name] * mean for name, mean in means.items()), **means}
