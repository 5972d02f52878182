"""Engines that divide weights and gradients among processes, in processes on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forked_runs import KEEPS_GROUP


@dataclass(frozen=True)
class Engine:
    """An engine of `config/_base_/runtime/`."""

    name: str
    prepare: Callable[[], None] | None = None
    """Function that each process calls before its command."""
    package: str = "torch"
    """Package without which tests are skipped."""
    overrides: tuple[str, ...] = ()
    """Overrides of the config."""


def use_fsdp() -> None:
    """Let accelerate use FSDP on a CPU. It ignores FSDP unless its processes have GPUs, and torch runs it on both."""
    os.environ[KEEPS_GROUP] = "1"
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    start = PartialState.__init__

    def start_as_on_gpus(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = start_as_on_gpus  # type: ignore[method-assign]


def use_deepspeed() -> None:
    """Let DeepSpeed use the collectives of torch. Its own ones for CPUs are compiled at their first use."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def use_zero3() -> None:
    """Use DeepSpeed as `use_deepspeed` does. ZeRO-3 keeps references to the process group."""
    os.environ[KEEPS_GROUP] = "1"
    use_deepspeed()


ENGINES = (
    Engine("ddp"),
    Engine("fsdp2", use_fsdp),
    Engine("zero2", use_deepspeed, "deepspeed"),
    Engine(
        "zero3",
        use_zero3,
        "deepspeed",
        # By default, the small tensors of a tiny model would not be divided.
        ("training_args.deepspeed.zero_optimization.stage3_param_persistence_threshold=0",),
    ),
)
