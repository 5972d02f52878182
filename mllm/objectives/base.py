"""What a term of the training loss is: a count and a sum, sample by sample."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mllm.errors import ConfigError
from mllm.structures import Bundle, Context


class Objective(nn.Module, ABC):
    """One term of the training loss, answered sample by sample.

    Counts are known before any forward, so a mean is exact however a batch is cut. `weight` is a number, or
    `{"start": a, "end": b}` to go from a to b linearly over the training.
    """

    def __init__(self, weight: float | dict[str, float] = 1.0) -> None:
        super().__init__()
        if isinstance(weight, dict):
            if set(weight) != {"start", "end"}:
                raise ConfigError(f"an objective's weight is a number or dict(start=..., end=...), not {weight}")
            self.start, self.end = float(weight["start"]), float(weight["end"])
        else:
            self.start = self.end = float(weight)

    @abstractmethod
    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Supervised items of each sample, [B]."""

    @abstractmethod
    def total(self, context: Context) -> Tensor:
        """The loss summed over the supervised items of each sample, [B]."""

    def connect(self, student: Bundle, teacher: Bundle | None) -> None:
        """Learns what it needs to know of the models, once, before it is used; most need nothing."""

    def weight(self, progress: float) -> float:
        """The factor of this term at `progress` in [0, 1]."""
        return self.start + (self.end - self.start) * progress
