"""Poisson sampling: every privacy unit takes part in an update independently with the same probability."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from mllm.dataset.base import SampleDataset
from mllm.dataset.loading.sampler import Draw
from mllm.dataset.mixing import repeated_row
from mllm.dataset.patients import Patients
from mllm.errors import ConfigError, DataError
from mllm.private_messages import current_row, in_row


class PoissonSampler(Sampler[list[Draw]]):
    """Draw the units of each update independently with probability `rate` and distribute them over the processes.

    The number of units of an update is random. If it is 0, the list is empty. The draw is a function of `secret` and
    the number of the update (SHAKE-256): all processes compute the same draw, and it cannot be predicted without the
    secret. An epoch has as many updates as shuffling with batches of units x rate would have. A unit may take part in
    several of them, so the number of the update takes the place of the epoch in the samples.

    Args:
        units: Indices of the samples of each unit.
        rate: Probability that a unit takes part in an update, in (0, 1].
        secret: Key of the draws.
        rank: Number of this process.
        world: Number of processes.
        max_samples: Maximum number of samples of one unit in an update; None: all.
    """

    def __init__(
        self,
        units: Sequence[Sequence[int]],
        rate: float,
        *,
        secret: bytes,
        rank: int = 0,
        world: int = 1,
        max_samples: int | None = None,
    ) -> None:
        assert 0 < rate <= 1, rate
        self.units, self.rate, self.secret, self.max_samples = units, rate, secret, max_samples
        self.rank, self.world = rank, world
        self.are_single = all(len(samples) == 1 for samples in units)
        """True if every unit is one sample."""
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, int(np.ceil(1 / self.rate - 1e-9)))

    def __iter__(self) -> Iterator[list[Draw]]:
        for update in range(self.epoch * len(self), (self.epoch + 1) * len(self)):
            drawn = self.draw(update)[self.rank :: self.world]
            if self.are_single:
                yield [Draw(self.units[unit][0], update) for unit in drawn]
            else:
                yield [Draw(index, update, unit=unit) for unit in drawn for index in self._samples(unit, update)]

    def draw(self, update: int) -> list[int]:
        """Return the numbers of the units that take part in an update, over all processes."""
        if self.rate == 1:
            return list(range(len(self.units)))
        digest = hashlib.shake_256(self.secret + update.to_bytes(8, "little")).digest(8 * len(self.units))
        drawn = np.frombuffer(digest, dtype="<u8") < np.uint64(int(self.rate * 2**64))
        return [int(unit) for unit in drawn.nonzero()[0]]

    def _samples(self, unit: int, update: int) -> Sequence[int]:
        """Return the samples of a unit; if it has more than `max_samples`, draw that many for the update."""
        samples = self.units[unit]
        if self.max_samples is None or len(samples) <= self.max_samples:
            return samples
        numbers = b"records" + self.secret + unit.to_bytes(8, "little") + update.to_bytes(8, "little")
        seed = int.from_bytes(hashlib.shake_256(numbers).digest(32), "little")
        chosen = np.random.default_rng(np.random.SeedSequence(seed, pool_size=8)).choice(
            len(samples), self.max_samples, replace=False
        )
        return [samples[position] for position in sorted(chosen.tolist())]


def units_of(dataset: SampleDataset, unit: str) -> list[list[int]]:
    """Return the indices of the samples of every privacy unit.

    Args:
        dataset: The dataset.
        unit: 'sample' (each sample is a unit) or 'patient' (all samples of a patient are one unit).

    Raises:
        DataError: `unit` is 'patient' and a row has no patient.
        ConfigError: `unit` is 'sample' and a combined dataset has a row twice.
    """
    if unit == "sample":
        repeated = repeated_row(dataset)
        if repeated is not None:
            fault = "is in data_args.train twice, but privacy_args.unit='sample' counts it as two samples"
            fix = "select each row once, or set unit to 'patient'"
            raise ConfigError(f"{dataset.describe(repeated)} {fault}: {fix}", f"a row {fault}: {fix}")
        return [[index] for index in range(len(dataset))]
    units: dict[str, list[int]] = {}
    patients = Patients()
    for index in range(len(dataset)):
        with in_row("train", index):
            group = dataset.group(index)
            if group is None:
                fault = (
                    "has no patient, but privacy_args.unit='patient' protects patients: add the patient to every row, "
                    "or set unit to 'sample'"
                )
                raise DataError(
                    f"{dataset.describe(index)} {fault}{dataset.patient_hint()}", f"{current_row()} {fault}"
                )
            patients.add(group, dataset, index)
            units.setdefault(group, []).append(index)
    patients.check_forms()
    return list(units.values())
