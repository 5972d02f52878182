"""Ledger of the noisy updates of a private training, the input of an accountant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """Consecutive updates with equal noise multiplier and sample rate."""

    noise_multiplier: float
    """Standard deviation of the noise on the sum of clipped gradients, as a multiple of the clip norm."""
    sample_rate: float
    """Probability in (0, 1] of each unit to take part, independently of the others (Poisson sampling)."""
    steps: int
    """Number of updates."""


class Ledger:
    """Updates of a private training, saved in every checkpoint.

    An update with an empty draw is counted, because its noise was added and the empty draw depends on the data.
    """

    def __init__(self, entries: Iterable[tuple[float, float, int]] = ()) -> None:
        self._entries: list[Entry] = []
        for entry in entries:
            self.add(*entry)

    def add(self, noise_multiplier: float, sample_rate: float, steps: int = 1) -> None:
        """Add `steps` updates. They are merged with the last entry if noise multiplier and rate are equal."""
        assert noise_multiplier >= 0, noise_multiplier
        assert 0 < sample_rate <= 1, sample_rate
        assert steps >= 0, steps
        if not steps:
            return
        if self._entries and self._entries[-1][:2] == (noise_multiplier, sample_rate):
            steps += self._entries.pop().steps
        self._entries.append(Entry(float(noise_multiplier), float(sample_rate), int(steps)))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Return the updates in order, with equal neighbors merged."""
        return tuple(self._entries)

    @property
    def steps(self) -> int:
        """Return the number of updates."""
        return sum(entry.steps for entry in self._entries)

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger as a dict for JSON."""
        return {"entries": [entry._asdict() for entry in self._entries]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Ledger:
        """Create a ledger from a dict of `to_dict`."""
        return cls((entry["noise_multiplier"], entry["sample_rate"], entry["steps"]) for entry in state["entries"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self.entries == other.entries

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Ledger({[tuple(entry) for entry in self._entries]})"
