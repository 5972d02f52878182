"""Check of per-sample gradients before the first update of a private training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mllm.engine.learner import Learner
from mllm.engine.privacy.per_sample import Tape
from mllm.errors import ConfigError
from mllm.models.encoding.packing import row_lengths
from mllm.structures import Batch

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Tolerance relative to the norm of a gradient, by the dtype of the weights."""
LOOSE_TOLERANCE = 3e-2
"""Tolerance for other dtypes and under autocast."""


def check_gradients(learner: Learner, tape: Tape, pieces: Sequence[Batch], alone: Batch, accelerator: Any) -> None:
    """Compare per-sample gradients with those of autograd. Gradients and random states do not change.

    In training mode, their sum must be the gradient of the summed loss. In evaluation mode, the gradient of a sample
    must not depend on the other samples of its batch.

    Args:
        learner: The learner.
        tape: Recorder of its gradients.
        pieces: Artificial batches.
        alone: Batch that contains only the last sample of the last piece.
        accelerator: Accelerator of the trainer.

    Raises:
        ConfigError: A gradient differs by more than the tolerance.
    """
    device = accelerator.device
    piece, alone = pieces[-1].to(device), alone.to(device)
    was_training = learner.training
    with accelerator.autocast():
        is_autocast = torch.is_autocast_enabled(device.type)
    dtype = next(iter(learner.student.pretrained.parameters())).dtype
    tolerance = LOOSE_TOLERANCE if is_autocast else TOLERANCE.get(dtype, LOOSE_TOLERANCE)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        learner.train()
        torch.manual_seed(0)
        recorded = _recorded(learner, tape, piece, accelerator)
        torch.manual_seed(0)  # repeat the dropout masks
        with accelerator.autocast():
            loss = _summed_loss(learner, piece)
        expected = torch.autograd.grad(loss, tape.parameters, allow_unused=True)
        sums = [None if gradient is None else gradient.sum(dim=0) for gradient in recorded]
        _compare(tape, sums, expected, tolerance, "do not add up to the gradient of the batch")
        learner.eval()
        in_batch = [_row(gradient, -1) for gradient in _recorded(learner, tape, piece, accelerator)]
        single = [_row(gradient, 0) for gradient in _recorded(learner, tape, alone, accelerator)]
        _compare(tape, in_batch, single, tolerance, "depend on the other samples of the batch")
    learner.train(was_training)


def _summed_loss(learner: Learner, piece: Batch) -> Tensor:
    loss: Tensor = learner(piece.student, piece.targets)["loss"] * piece.samples
    return loss


def _recorded(learner: Learner, tape: Tape, piece: Batch, accelerator: Any) -> list[Tensor | None]:
    """Return the per-sample gradients [B, ...] of each parameter; None without influence on the loss."""
    with tape.recording(piece.samples, piece.images, row_lengths(piece.student)) as gradients:
        with accelerator.autocast():
            loss = _summed_loss(learner, piece)
        loss.backward()
    return [gradients.get(parameter) for parameter in tape.parameters]


def _row(gradient: Tensor | None, row: int) -> Tensor | None:
    return None if gradient is None else gradient[row]


def _compare(
    tape: Tape, gradients: Sequence[Tensor | None], expected: Sequence[Tensor | None], tolerance: float, fault: str
) -> None:
    """Raise `ConfigError` for the first gradient with an error above `tolerance` times its norm."""
    for (parameter, name), actual, target in zip(tape.names.items(), gradients, expected, strict=True):
        zero = torch.zeros_like(parameter)
        actual, target = (zero if actual is None else actual), (zero if target is None else target)
        norm = float(target.norm())
        error = float((actual - target).norm())
        if not error <= tolerance * norm + torch.finfo(zero.dtype).eps:
            raise ConfigError(
                f"privacy_args: the per-sample gradients of {name} {fault} (error {error:.2e}, norm {norm:.2e}), "
                "so they cannot be bounded: remove it from model_args.lora_target, and please report it"
            )
