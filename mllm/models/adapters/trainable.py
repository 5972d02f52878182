"""Counts of trainable parameters per tower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb

from mllm.protocols import Model


@dataclass(frozen=True)
class TowerCount:
    """Trainable parameters of one tower."""

    tower: str
    tensors: int
    """Number of trainable tensors."""
    parameters: int
    """Number of elements of the trainable tensors."""
    total: int
    """Number of elements of all tensors, frozen and trainable."""

    @property
    def percent(self) -> float:
        """Return the percentage of the tower's parameters that are trainable."""
        return 100 * self.parameters / self.total


def count_trainable(model: Model) -> list[TowerCount]:
    """Return the trainable parameters of each tower, in the order of the model's parameters."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        count = counts.setdefault(model.tower_of(name), [0, 0, 0])
        size = _size(parameter)
        count[0] += parameter.requires_grad
        count[1] += size if parameter.requires_grad else 0
        count[2] += size
    return [TowerCount(tower, *count) for tower, count in counts.items()]


def _size(parameter: Any) -> int:
    """Return the number of elements of a parameter. A byte of a 4-bit weight holds two."""
    state = parameter.quant_state if isinstance(parameter, bnb.nn.Params4bit) else None
    return parameter.numel() if state is None else math.prod(state.shape)


def format_counts(counts: Sequence[TowerCount]) -> str:
    """Return the counts as a table with their sum in the last line."""
    columns = zip(*[(count.tensors, count.parameters, count.total) for count in counts], strict=True)
    rows = [*counts, TowerCount("all", *map(sum, columns))]
    lines = [f"{'tower':<12}{'tensors':>8}{'trainable':>14}{'of':>16}{'percent':>9}"]
    lines += [f"{r.tower:<12}{r.tensors:>8}{r.parameters:>14,}{r.total:>16,}{r.percent:>9.3f}" for r in rows]
    return "\n".join(lines)
