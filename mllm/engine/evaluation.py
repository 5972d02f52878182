"""The mean loss of a split, exact however it is cut into batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mllm.engine.learner import Learner
from mllm.errors import DataError
from mllm.structures import LogicalBatch


def check_failures(batch: LogicalBatch, skip: bool) -> None:
    """Raises `DataError` for the first row that could not be used; with `skip`, only where none of the batch could."""
    if batch.failures and not skip:
        raise DataError(batch.failures[0].sentence)
    if not batch.pieces:
        raise DataError(f"no row of a whole batch could be used; the first: {batch.failures[0].sentence}")


@torch.no_grad()
def mean_losses(
    model: nn.Module,
    learner: Learner,
    batches: Iterable[LogicalBatch],
    accelerator: Any,
    skip_failures: bool = False,
) -> dict[str, float]:
    """`loss` and each objective's mean per supervised item over all `batches` of all processes.

    `model` is the learner as the accelerator wrapped it. Raises `DataError` where a row cannot be used,
    unless `skip_failures`.
    """
    was_training = model.training
    model.eval()
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for batch in batches:
        check_failures(batch, skip_failures)
        for piece in batch.pieces:
            piece = piece.to(accelerator.device)
            items = learner.counts(piece.targets)
            ones = {name: torch.ones_like(count) for name, count in items.items()}
            terms = model(student=piece.student, targets=piece.targets, teacher=piece.teacher, counts=ones)
            for name, count in items.items():
                counts[name] = counts.get(name, 0) + count
                totals[name] = totals.get(name, 0) + terms[name].double()
    model.train(was_training)
    means = {
        name: float(accelerator.reduce(total, "sum") / accelerator.reduce(counts[name], "sum").clamp_min(1))
        for name, total in totals.items()
    }
    weights = {name: objective.weight(learner.progress) for name, objective in learner.named_objectives()}
    return {"loss": sum(weights[name] * mean for name, mean in means.items()), **means}
