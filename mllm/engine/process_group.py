"""Start and end of the process group of a command that several processes run."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from accelerate import DistributedType, PartialState

from mllm.errors import ConfigError


def start_processes(device: str, seconds: float | None = None) -> None:
    """Connect the processes of a command; later calls of `PartialState()` return the same state.

    Args:
        device: `cpu`, or the device of GPUs.
        seconds: Time after which a process that waits for another one ends; None: the default of PyTorch.

    Raises:
        ConfigError: The processes cannot connect.
    """
    options = {} if seconds is None else {"timeout": timedelta(seconds=seconds)}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and find_spec("deepspeed") is not None:
        # accelerate imports it sooner or later. Defaults of its functions would then hold the process group.
        importlib.import_module("deepspeed")
    try:
        PartialState(cpu=device == "cpu", **options)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConfigError(
            f"the processes cannot connect at {address} ({str(error).splitlines()[0]}): choose a free port "
            "(--master_port, or MASTER_PORT), and start all processes"
        ) from error


def end_processes() -> None:
    """Destroy the process group of a command and its threads. Nothing else may refer to them any more.

    A thread that frees a tensor while the interpreter exits would crash a process that has finished.
    """
    state = PartialState()
    if state.distributed_type == DistributedType.NO:
        return
    gc.collect()  # a trainer and its model refer to each other
    deepspeed: Any = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    state.destroy_process_group()
