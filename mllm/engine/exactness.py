"""Comparison of the loss and the gradients of a micro-batch, computed in two ways on the device of the training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from mllm.engine.learner import Learner
from mllm.errors import ConfigError
from mllm.structures import Batch

TOLERANCE = {"fp32": (1e-5, 1e-3), "bf16": (1e-2, 5e-2), "fp16": (1e-2, 5e-2)}
"""Largest relative differences by precision: of the loss, and of all gradients (norm of the difference / norm)."""


@dataclass(frozen=True)
class Pass:
    """Loss, [], and gradients of the trained tensors of one forward and backward pass."""

    loss: Tensor
    gradients: list[Tensor]

    @classmethod
    def of(cls, learner: Learner, piece: Batch, autocast: Callable[[], AbstractContextManager[Any]]) -> Pass:
        """Compute a micro-batch on its device in training mode. Random states and gradients do not change."""
        device = next(learner.parameters()).device
        was_training = learner.training
        trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            learner.train()
            with autocast():
                loss = learner(piece.student, piece.targets, piece.teacher)["loss"]
            found = torch.autograd.grad(loss, trained, allow_unused=True)
        learner.train(was_training)
        return cls(loss.detach(), [gradient for gradient in found if gradient is not None])

    def on_host(self) -> Pass:
        """Return the pass with its gradients on the host, so that those of another pass fit on the device."""
        return Pass(self.loss, [gradient.cpu() for gradient in self.gradients])

    def differences(self, expected: Pass) -> tuple[float, float]:
        """Return the relative differences of the loss and of all gradients. One tensor at a time changes its device."""
        norms = [norms_of(one, other).tolist() for one, other in zip(self.gradients, expected.gradients, strict=True)]
        difference, norm = torch.tensor(norms, dtype=torch.float64).norm(dim=0)
        loss = (self.loss - expected.loss).abs() / expected.loss.abs()
        return float(loss), float(difference / norm)


def norms_of(one: Tensor, other: Tensor) -> Tensor:
    """Return the norms of the difference and of the other tensor, [2], on the device of the first."""
    expected = other.to(one.device).float()
    difference = one.float() - expected
    return torch.stack([vector_norm(tensor, dtype=torch.float64) for tensor in (difference, expected)])


def agreement(found: Pass, expected: Pass, precision: str, key: str) -> str:
    """Return how far two passes agree.

    Raises:
        ConfigError: They differ by more than the precision of the run explains.
    """
    differences, limits = found.differences(expected), TOLERANCE[precision]
    text = "loss {:.1e}, gradients {:.1e} (limits {:g} and {:g}, relative)".format(*differences, *limits)
    if all(difference <= limit for difference, limit in zip(differences, limits, strict=True)):  # false for NaN
        return text
    raise ConfigError(f"{key} changes the training on this device: {text}; remove it")
