"""Sum of gradients that are clipped per unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ClippedSum:
    """Sum of the gradients of units, each clipped to `clip_norm` in L2 norm (arXiv:1607.00133).

    The gradient of a unit is the sum over its samples. They are consecutive and may be split over several calls.

    Args:
        parameters: Trained parameters, of one dtype and device.
        clip_norm: Bound of the norm of the gradient of a unit.
        groups: Indices of the parameters of each layer. With them, the gradient of each layer is clipped to
            clip_norm / sqrt(layers), so the whole gradient is also bounded by `clip_norm`. None: flat clipping of the
            gradient as one vector.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], clip_norm: float, groups: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.parameters = list(parameters)
        self.groups = [range(len(self.parameters))] if groups is None else list(groups)
        self.bound = clip_norm / math.sqrt(len(self.groups))
        sizes = [parameter.numel() for parameter in self.parameters]
        first = self.parameters[0]
        assert all(parameter.dtype is first.dtype and parameter.device == first.device for parameter in parameters)
        self.flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        """The sum of all parameters, concatenated and flattened."""
        self._parts = self.flat.split(sizes)
        self._open: tuple[int, list[Tensor]] | None = None

    def zero(self) -> None:
        """Start a new sum."""
        assert self._open is None, "a unit is still open"
        self.flat.zero_()

    def add(self, gradients: list[Tensor], units: Sequence[int] | None = None) -> None:
        """Add the gradients of samples.

        Args:
            gradients: Gradients [B, numel], in the order of the parameters.
            units: Unit of each sample, [B]; equal ones are adjacent. None: each sample is a unit. The last unit stays
                open, because the next call may contain more of its samples.
        """
        if units is None:
            self._clip(gradients)
            return
        numbers, indices = _unit_indices(units)
        index = torch.tensor(indices, device=self.flat.device)
        sums = [part.new_zeros(len(numbers), part.shape[1]).index_add_(0, index, part) for part in gradients]
        if self._open is not None:
            number, before = self._open
            if number == numbers[0]:
                for part, earlier in zip(sums, before, strict=True):
                    part[:1] += earlier
            else:
                self._clip(before)
        self._open = (numbers[-1], [part[-1:].clone() for part in sums])
        if len(numbers) > 1:
            self._clip([part[:-1] for part in sums])

    def finish(self) -> None:
        """Clip and add the open unit."""
        if self._open is not None:
            self._clip(self._open[1])
            self._open = None

    def gradients(self, expected: float) -> list[Tensor]:
        """Return the sum divided by the expected number of units, in the shapes of the parameters."""
        return [
            (part / expected).view_as(parameter) for part, parameter in zip(self._parts, self.parameters, strict=True)
        ]

    def _clip(self, gradients: list[Tensor]) -> None:
        for group in self.groups:
            norms = torch.stack([torch.linalg.vector_norm(gradients[number], dim=1) for number in group])
            norm = torch.linalg.vector_norm(norms.double(), dim=0)
            factor = (self.bound / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1).to(self.flat.dtype)
            for number in group:
                self._parts[number].addmv_(gradients[number].T, factor)


def _unit_indices(units: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the distinct units in order, and the index of the unit of each sample among them."""
    numbers: list[int] = []
    indices = []
    for unit in units:
        if not numbers or numbers[-1] != unit:
            assert unit not in numbers, "the samples of a unit must be adjacent"
            numbers.append(unit)
        indices.append(len(numbers) - 1)
    return numbers, indices
