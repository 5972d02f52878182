"""The mean loss of a split, exact however it is cut into batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mllm.engine.learner import Learner
from mllm.errors import DataError
from mllm.structures import LogicalBatch


def check_failures(batch: LogicalBatch, skip: bool) -> None:
    """Raises `DataError` for the first row that could not be used, unless such rows are to be skipped."""
    if batch.failures and not skip:
        raise DataError(batch.failures[0].sentence)


@torch.no_grad()
def mean_losses(
    model: nn.Module,
    learner: Learner,
    batches: Iterable[LogicalBatch],
    accelerator: Any,
) -> dict[str, float]:
    """`loss` and each objective's mean per supervised item over all `batches` of all processes.

    `model` is the learner as the accelerator wrapped it. Weights are those at the end of the training, so that losses
    of different epochs compare under a curriculum too. Raises `DataError` where nothing in them is supervised.
    """
    was_training = model.training
    model.eval()
    names = [name for name, _ in learner.named_objectives()]
    nothing = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    totals, counts = dict.fromkeys(names, nothing), dict.fromkeys(names, nothing)
    for batch in batches:
        for piece in batch.pieces:
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
        raise DataError("no row of the validation split could be used")
    means = {
        name: float(accelerator.reduce(total, "sum") / counts[name].clamp_min(1)) for name, total in totals.items()
    }
    weights = {name: objective.weight(1.0) for name, objective in learner.named_objectives()}
    return {"loss": sum(weights[name] * mean for name, mean in means.items()), **means}
