"""Poisson draws: every unit takes part in an update with the same probability, whoever else does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from mllm.dataset.base import SampleDataset
from mllm.dataset.loading.sampler import Draw
from mllm.errors import DataError


class PoissonSampler(Sampler[list[Draw]]):
    """Draws each update's units independently with probability `rate`, and deals them to the processes in turn.

    How many units an update has is random; it may be none, and then the list is empty. Who is drawn follows from
    `secret` and the number of the update alone, by a hash of which no part tells another (SHAKE-256): all processes see
    one draw, and nobody without the secret sees any. An epoch has as many updates as a shuffle with units x rate at a
    time would have.
    """

    def __init__(
        self,
        units: Sequence[Sequence[int]],
        rate: float,
        *,
        secret: bytes,
        rank: int = 0,
        world: int = 1,
        most: int | None = None,
    ) -> None:
        assert 0 < rate <= 1, rate
        self.units, self.rate, self.secret, self.most = units, rate, secret, most
        self.rank, self.world = rank, world
        self.are_single = all(len(records) == 1 for records in units)
        """Whether every unit is one sample."""
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration deals."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, int(np.ceil(1 / self.rate - 1e-9)))

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch = self.epoch
        for update in range(epoch * len(self), (epoch + 1) * len(self)):
            drawn = self.drawn(update)[self.rank :: self.world]
            if self.are_single:
                yield [Draw(self.units[unit][0], epoch) for unit in drawn]
            else:
                yield [Draw(record, epoch, unit=unit) for unit in drawn for record in self._records(unit, update)]

    def drawn(self, update: int) -> list[int]:
        """The numbers of the units that take part in an update, on all processes together."""
        if self.rate == 1:
            return list(range(len(self.units)))
        digest = hashlib.shake_256(self.secret + update.to_bytes(8, "little")).digest(8 * len(self.units))
        drawn = np.frombuffer(digest, dtype="<u8") < np.uint64(int(self.rate * 2**64))
        return [int(unit) for unit in drawn.nonzero()[0]]

    def _records(self, unit: int, update: int) -> Sequence[int]:
        """A unit's samples, `most` of them, chosen anew for every update, where it has more."""
        records = self.units[unit]
        if self.most is None or len(records) <= self.most:
            return records
        chosen = np.random.default_rng((unit, update)).choice(len(records), self.most, replace=False)
        return [records[place] for place in sorted(chosen.tolist())]


def units_of(dataset: SampleDataset, unit: str) -> list[list[int]]:
    """The samples of every unit: each sample for itself, or all of a patient together.

    Raises `DataError` for unit='patient' where a row says nobody's name.
    """
    if unit == "sample":
        return [[index] for index in range(len(dataset))]
    patients: dict[str, list[int]] = {}
    for index in range(len(dataset)):
        group = dataset.group(index)
        if group is None:
            raise DataError(
                f"{dataset.describe(index)} names no patient, and privacy_args.unit='patient' promises privacy to "
                "patients; name one in every row, or set unit to 'sample'"
            )
        patients.setdefault(group, []).append(index)
    return list(patients.values())
