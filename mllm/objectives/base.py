"""Base class of the terms of the training loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from mllm.errors import ConfigError
from mllm.protocols import Bundle
from mllm.structures import Context

Reads = Literal["box", "mask", "measures"]
TeacherOutput = Literal["features", "logits"]


class Objective(nn.Module, ABC):
    """One term of the training loss, computed for each sample.

    Counts are known before the forward pass, so a mean is exact however a batch is split.

    Args:
        weight: Factor of this term. `dict(start=a, end=b)` changes it linearly from a to b over the training.
    """

    reads: ClassVar[Reads | None] = None
    """Name of the head whose predictions the objective reads. None: no head."""
    reads_targets: ClassVar[bool] = True
    """False for an objective that only compares predictions with each other, so its head needs another one, too."""
    teacher: ClassVar[TeacherOutput | None] = None
    """Output of the teacher that the objective reads. None: no teacher."""

    def __init__(self, weight: float | dict[str, float] = 1.0) -> None:
        super().__init__()
        self.start, self.end = ends_of(weight)

    @abstractmethod
    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Return the number of supervised items of each sample, [B]."""

    @abstractmethod
    def total(self, context: Context) -> Tensor:
        """Return the loss summed over the supervised items of each sample, [B]."""

    def connect(self, student: Bundle, teacher: Bundle | None) -> None:
        """Prepare the objective for its models, once, before its first use. The default does nothing."""

    def weight(self, progress: float) -> float:
        """Return the factor of this term at `progress` in [0, 1]."""
        return self.start + (self.end - self.start) * progress


def ends_of(weight: float | dict[str, float]) -> tuple[float, float]:
    """Return the factor of a term at the start and at the end of a training.

    Raises:
        ConfigError: It is negative, not finite, or 0 throughout: the term would be maximized, or would train nothing.
    """
    if isinstance(weight, dict):
        if set(weight) != {"start", "end"}:
            raise ConfigError(f"an objective's weight is a number or dict(start=..., end=...), not {weight}")
        start, end = float(weight["start"]), float(weight["end"])
    else:
        start = end = float(weight)
    check_factors("an objective's weight", start, end)
    return start, end


def check_factors(name: str, *factors: float) -> None:
    """Raise `ConfigError` if one of the factors of a loss is negative or not finite, or if all are 0.

    Args:
        name: Name of the factors in the message.
        factors: The factors.
    """
    if not all(0 <= factor < math.inf for factor in factors) or not any(factors):
        values = " and ".join(map(str, dict.fromkeys(factors)))
        raise ConfigError(f"{name} must be at least 0 and finite, and not 0 throughout, not {values}")
