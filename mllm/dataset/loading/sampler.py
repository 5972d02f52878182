"""Sampler of logical batches: each update is a function of seed and epoch, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from mllm.errors import ConfigError


class Draw(NamedTuple):
    """One sample of an epoch."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    epoch: int
    """Number that selects the random transforms of the sample: its epoch, or its update if an epoch may draw it twice.
    """
    counted: bool = True
    """False for a padding sample with weight 0, which gives a process a batch if there are not enough samples."""
    unit: int | None = None
    """Number of the privacy unit that the sample belongs to, if units have several samples."""


class LogicalBatchSampler(Sampler[list[Draw]]):
    """Shuffle samples by (seed, epoch) and distribute those of each update over the processes.

    `batch_size` is the share of one process in the logical batch. The union over the processes is the same for
    1 x 4 and 2 x 2, and so is the update. The last, smaller batch is used unless `drop_last` is True.

    With `groups` [size], samples with equal numbers follow each other, in a random order, and a process has consecutive
    ones; groups are shuffled. Every sample is still read once in an epoch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        groups: np.ndarray | None = None,
    ) -> None:
        self.groups = groups
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world = rank, world
        self.shuffle, self.drop_last = shuffle, drop_last
        self.epoch = 0
        if not len(self):
            raise ConfigError.without_values(
                f"training_args.dataloader_drop_last=True drops all {size} samples, because an update takes "
                f"{batch_size * world}: set it to False, or lower the batch size or gradient_accumulation_steps"
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        per_update = self.batch_size * self.world
        return self.size // per_update if self.drop_last else -(-self.size // per_update)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch = self.epoch
        order = self._order(epoch)
        per_update = self.batch_size * self.world
        for start in range(0, len(self) * per_update, per_update):
            update = [int(index) for index in order[start : start + per_update]]
            if self.groups is None:
                own = update[self.rank :: self.world]
            else:
                own = np.array_split(update, self.world)[self.rank].tolist()
            yield [Draw(index, epoch) for index in own] or [Draw(update[0], epoch, counted=False)]

    def _order(self, epoch: int) -> Sequence[int] | np.ndarray:
        """Return the order of the samples in an epoch."""
        if not self.shuffle:
            return range(self.size)
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.size)
        if self.groups is None:
            return order
        rank = rng.permutation(int(self.groups.max()) + 1)
        return order[np.argsort(rank[self.groups[order]], kind="stable")]
