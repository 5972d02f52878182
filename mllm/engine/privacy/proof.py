"""Before step 1 of a private training: the gradients of samples add up to autograd's, and each is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mllm.engine.learner import Learner
from mllm.engine.privacy.per_sample import Tape
from mllm.errors import ConfigError
from mllm.structures import Batch

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far gradients may be from autograd's, relative to a tensor's norm, by the dtype of the weights."""
LOOSE = 3e-2
"""The same for narrower dtypes, and under autocast."""


def check_gradients(learner: Learner, tape: Tape, pieces: Sequence[Batch], alone: Batch, accelerator: Any) -> None:
    """Compares the gradients of samples with autograd's on a batch that is not the data.

    In training mode their sum must be the gradient of the summed loss, tensor by tensor. In evaluation mode, without
    dropout, the gradient of the sample in `alone`, the last of the last piece, must be the one that it has among the
    others; if not, something mixes the samples of a batch. Leaves no trace in gradients or random states. Raises
    `ConfigError`.
    """
    device = accelerator.device
    piece, alone = pieces[-1].to(device), alone.to(device)
    was_training = learner.training
    with accelerator.autocast():
        narrow = torch.is_autocast_enabled(device.type)
    dtype = next(iter(learner.student.pretrained.parameters())).dtype
    tolerance = LOOSE if narrow else TOLERANCE.get(dtype, LOOSE)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        learner.train()
        torch.manual_seed(0)
        recorded = _recorded(learner, tape, piece, accelerator)
        torch.manual_seed(0)  # the same dropout
        with accelerator.autocast():
            loss = _summed_loss(learner, piece)
        own = torch.autograd.grad(loss, tape.parameters, allow_unused=True)
        sums = [None if gradient is None else gradient.sum(dim=0) for gradient in recorded]
        _compare(tape, sums, own, tolerance, "do not add up to the gradient of the batch")
        learner.eval()
        among = [_row(gradient, -1) for gradient in _recorded(learner, tape, piece, accelerator)]
        single = [_row(gradient, 0) for gradient in _recorded(learner, tape, alone, accelerator)]
        _compare(tape, among, single, tolerance, "depend on the other samples of the batch")
    learner.train(was_training)


def _summed_loss(learner: Learner, piece: Batch) -> Tensor:
    loss: Tensor = learner(piece.student, piece.targets)["loss"] * piece.samples
    return loss


def _recorded(learner: Learner, tape: Tape, piece: Batch, accelerator: Any) -> list[Tensor | None]:
    """The gradients of samples [B, ...] for each parameter; None where it has no part in the loss."""
    with tape.recording(piece.samples, piece.images) as gradients:
        with accelerator.autocast():
            loss = _summed_loss(learner, piece)
        loss.backward()
    return [gradients.get(parameter) for parameter in tape.parameters]


def _row(gradient: Tensor | None, row: int) -> Tensor | None:
    return None if gradient is None else gradient[row]


def _compare(
    tape: Tape, found: Sequence[Tensor | None], true: Sequence[Tensor | None], tolerance: float, fault: str
) -> None:
    """Raises `ConfigError` for the first tensor that is further off than `tolerance` times its norm."""
    for (parameter, name), ours, theirs in zip(tape.names.items(), found, true, strict=True):
        zero = torch.zeros_like(parameter)
        ours, theirs = (zero if ours is None else ours), (zero if theirs is None else theirs)
        norm = float(theirs.norm())
        off = float((ours - theirs).norm())
        if not off <= tolerance * norm + torch.finfo(zero.dtype).eps:
            raise ConfigError(
                f"privacy_args: the gradients of single samples of {name} {fault} (off by {off:.2e}, norm {norm:.2e}), "
                "so they cannot be bounded one by one: leave it out of model_args.lora_target, and please report it"
            )
