"""End of the process group of a command that several processes run."""

from __future__ import annotations

import gc
import sys
from typing import Any

from accelerate import DistributedType, PartialState


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
