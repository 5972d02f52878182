"""Device whose kernels a computation uses: that of its tensors, or the one that a plan is for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_PLANNED: ContextVar[str | None] = ContextVar("planned", default=None)


def device_of(tensor: Tensor) -> str:
    """Return the type of the device whose code computes with a tensor, such as 'cuda'."""
    return _PLANNED.get() or tensor.device.type


@contextmanager
def planned_for(device: str) -> Iterator[None]:
    """Compute on the CPU with the code for `device` in the block, as plans do on fake tensors."""
    token = _PLANNED.set(device)
    try:
        yield
    finally:
        _PLANNED.reset(token)
