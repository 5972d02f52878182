"""Sampler of logical batches: each update is a function of seed and epoch, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from mllm.errors import ConfigError


class Draw(NamedTuple):
    """One sample of an epoch."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    epoch: int
    counted: bool = True
    """False for a padding sample with weight 0, which gives a process a batch if there are not enough samples."""
    unit: int | None = None
    """Number of the privacy unit that the sample belongs to, if units have several samples."""


class LogicalBatchSampler(Sampler[list[Draw]]):
    """Shuffle samples by (seed, epoch) and distribute those of each update over the processes.

    `batch_size` is the share of one process in the logical batch. The union over the processes is the same for
    1 x 4 and 2 x 2, and so is the update. The last, smaller batch is used unless `drop_last` is True.
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
    ) -> None:
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
        order = np.random.default_rng((self.seed, epoch)).permutation(self.size) if self.shuffle else range(self.size)
        per_update = self.batch_size * self.world
        for start in range(0, len(self) * per_update, per_update):
            update = [int(index) for index in order[start : start + per_update]]
            share = [Draw(index, epoch) for index in update[self.rank :: self.world]]
            yield share or [Draw(update[0], epoch, counted=False)]
