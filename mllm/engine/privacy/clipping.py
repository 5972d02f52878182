"""The sum of clipped gradients: what one unit can change in it is bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ClippedSum:
    """The sum over units of their gradients, each clipped to `clip_norm` in L2 norm.

    "flat" clipping takes a unit's gradient as one vector (arXiv:1607.00133). With `groups`, the numbers of the
    parameters of each layer, every layer's part is clipped to clip_norm / sqrt(layers), so that the whole is bounded by
    `clip_norm` all the same. A unit with several samples gives the sum of their gradients; its samples come one after
    another and may come in several calls.
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
        """The sum so far, all parameters one after another."""
        self._parts = self.flat.split(sizes)
        self._open: tuple[int, list[Tensor]] | None = None

    def zero(self) -> None:
        """Begins a new sum."""
        assert self._open is None, "a unit is still open"
        self.flat.zero_()

    def add(self, gradients: list[Tensor], units: Sequence[int] | None = None) -> None:
        """Adds the gradients [B, numbers] of samples, in the order of the parameters.

        `units` says whose each sample is, equal numbers side by side; without it every sample is a unit of its own. The
        last unit of a call stays open, because its next sample may come with the next call.
        """
        if units is None:
            self._clip(gradients)
            return
        numbers, places = _numbered(units)
        place = torch.tensor(places, device=self.flat.device)
        sums = [part.new_zeros(len(numbers), part.shape[1]).index_add_(0, place, part) for part in gradients]
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
        """Clips and adds the unit that is still open."""
        if self._open is not None:
            self._clip(self._open[1])
            self._open = None

    def gradients(self, expected: float) -> list[Tensor]:
        """The sum over `expected` units, the same number in every update, for each parameter in its shape."""
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


def _numbered(units: Sequence[int]) -> tuple[list[int], list[int]]:
    """The different units in order, and for each sample the place of its unit among them."""
    numbers: list[int] = []
    places = []
    for unit in units:
        if not numbers or numbers[-1] != unit:
            assert unit not in numbers, "the samples of a unit must stand side by side"
            numbers.append(unit)
        places.append(len(numbers) - 1)
    return numbers, places
