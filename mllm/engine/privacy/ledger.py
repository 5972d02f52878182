"""The ledger of a private training: every noisy update that was made, which is all that an accountant needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """Consecutive updates of one kind: each drew units with one rate and added noise once."""

    noise_multiplier: float
    """Standard deviation of the noise on the sum of clipped gradients, as a multiple of the clip norm."""
    sample_rate: float
    """Probability in (0, 1] with which every unit took part, independently of the others (a Poisson draw)."""
    steps: int
    """How many updates."""


class Ledger:
    """A list of updates that grows with the training and is saved with every checkpoint.

    An update whose draw was empty counts like any other: its noise was added, and that nobody was drawn is information.
    """

    def __init__(self, entries: Iterable[tuple[float, float, int]] = ()) -> None:
        self._entries: list[Entry] = []
        for entry in entries:
            self.add(*entry)

    def add(self, noise_multiplier: float, sample_rate: float, steps: int = 1) -> None:
        """Writes down `steps` updates; joined with the last entry where noise and rate are the same."""
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
        """The updates in the order in which they were made, equal neighbors joined."""
        return tuple(self._entries)

    @property
    def steps(self) -> int:
        """The number of all updates."""
        return sum(entry.steps for entry in self._entries)

    def to_dict(self) -> dict[str, Any]:
        """The ledger as JSON can hold it; floats keep every digit."""
        return {"entries": [entry._asdict() for entry in self._entries]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Ledger:
        """The way back from `to_dict`."""
        return cls((entry["noise_multiplier"], entry["sample_rate"], entry["steps"]) for entry in state["entries"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self.entries == other.entries

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        return f"Ledger({[tuple(entry) for entry in self._entries]})"
