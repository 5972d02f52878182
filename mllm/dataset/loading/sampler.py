"""Which samples make up which update: a function of seed and epoch alone, however many processes share it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from mllm.errors import ConfigError


class Draw(NamedTuple):
    """One sample asked for by an epoch."""

    index: int  # type: ignore[assignment]  # tuple.index is not missed
    epoch: int
    counted: bool = True
    """False for a stand-in: it runs through the model so that every process has a batch, and weighs nothing."""
    unit: int | None = None
    """Whose contribution it is, where privacy is promised to units of several samples."""


class LogicalBatchSampler(Sampler[list[Draw]]):
    """Shuffles by (seed, epoch) and deals each update's samples to the processes in turn.

    `batch_size` is one process's share of the logical batch. The union over processes is the same for 1 x 4 and
    2 x 2, so the update is too. A last, smaller batch is kept unless `drop_last`.
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
            raise ConfigError(
                f"training_args.dataloader_drop_last=True leaves nothing of {size} samples, because an update takes "
                f"{batch_size * world}: set it to False, or lower the batch size or gradient_accumulation_steps"
            )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration deals."""
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
