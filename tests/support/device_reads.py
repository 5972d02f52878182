"""Record of the values that the host reads from a device, which has to finish its work first, on a machine without one.

`Batch.to` returns tensors of a class of their own, which results of operations with them have, too. Operations that
would wait for a GPU are recorded.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm.structures import Batch

READS = frozenset(
    {
        *("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"),
        *("nonzero", "masked_select", "unique", "unique_consecutive", "bincount", "equal", "allclose", "is_nonzero"),
        *("argwhere", "__contains__"),
    }
)
INDEXING = frozenset({"__getitem__", "__setitem__", "index_put", "index_put_", "index"})


class OnDevice(torch.Tensor):
    """Tensor whose readings by the host are counted in `reads`, with the innermost file that is not of PyTorch."""

    reads: Counter[str] = Counter()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name in READS or (name in INDEXING and _has_mask(args[1])) or (name == "where" and len(args) == 1):
            cls.reads[f"{name}: {_place()}"] += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, (tuple, list)) else [index]
    return any(isinstance(part, torch.Tensor) and part.dtype is torch.bool for part in parts)


def _place() -> str:
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if "torch" not in path.parts and path.name != Path(__file__).name:
            return f"{path.parent.name}/{path.name}:{frame.name}"
    return "unknown"


def record_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Let batches that are moved to the device have tensors of `OnDevice`. Return the record."""

    def to(batch: Batch, device: Any, non_blocking: bool = False) -> Batch:
        return batch.map(lambda item: item.as_subclass(OnDevice))

    monkeypatch.setattr(Batch, "to", to)
    monkeypatch.setattr(OnDevice, "reads", Counter())
    return OnDevice.reads
