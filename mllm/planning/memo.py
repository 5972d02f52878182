"""Memory of the outputs of operations on fake tensors, by the sizes of their inputs.

The layers of a model repeat the same operations on tensors of the same sizes. PyTorch computes the size of an output in
Python, which takes most of the time of a plan; here each operation is computed once for each combination of sizes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

EXCLUDED = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)
"""Tags of operations whose outputs depend on numbers, or that change the shape of an input."""


class Output(NamedTuple):
    """One output of an operation."""

    source: int
    """Position of the argument that is returned, or of which the output is a view; -1: a tensor of its own."""
    is_view: bool
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype | None
    """None: the output is None."""
    device: torch.device | None


class Known(NamedTuple):
    """Outputs of an operation on inputs of some sizes."""

    outputs: tuple[Output, ...]
    container: type | None
    """Type of the outputs together; None for a single one."""
    flops: int


class Memo:
    """Outputs of the operations so far."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._known: dict[Hashable, Known] = {}

    def key(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Hashable:
        """Return a key of a call; None if its outputs do not follow from the sizes of its inputs."""
        if any(tag in func.tags for tag in EXCLUDED):
            return None
        try:
            key = (func, _described(args), _described(tuple(kwargs.items())), torch.is_inference_mode_enabled())
            hash(key)
        except TypeError:
            return None
        return key

    def find(self, key: Hashable) -> Known | None:
        """Return what is known of a call."""
        return self._known.get(key)

    def add(self, key: Hashable, args: Any, outputs: Any, flops: int) -> None:
        """Remember the outputs of a call, if they are tensors of their own, or views of arguments."""
        parts = outputs if isinstance(outputs, tuple | list) else (outputs,)
        fresh: set[int] = set()
        known = []
        inputs = {tensor.untyped_storage()._cdata: -2 for tensor in tensors_in(args)}
        inputs |= {
            value.untyped_storage()._cdata: index for index, value in enumerate(args) if isinstance(value, FakeTensor)
        }
        for part in parts:
            output = _output(part, args, inputs, fresh)
            if output is None:
                return
            known.append(output)
        self._known[key] = Known(tuple(known), _container(outputs), flops)

    def outputs(self, known: Known, args: Any) -> Any:
        """Return new outputs of a call."""
        made = [self._made(output, args) for output in known.outputs]
        return made[0] if known.container is None else known.container(made)

    def _made(self, output: Output, args: Any) -> Any:
        if output.dtype is None:
            return None
        if output.source >= 0 and not output.is_view:
            return args[output.source]
        with in_kernel_invocation_manager(self.mode):
            if output.is_view:
                tensor = torch.empty_strided((), (), dtype=output.dtype, device="meta")
                storage = args[output.source].untyped_storage()
                tensor.set_(storage, output.offset, output.shape, output.stride)
            else:
                tensor = torch.empty_strided(output.shape, output.stride, dtype=output.dtype, device="meta")
        return FakeTensor(self.mode, tensor, output.device)


def _container(outputs: Any) -> type | None:
    """Return the type of several outputs, a list or a tuple; None for a single one."""
    if not isinstance(outputs, tuple | list):
        return None
    return list if isinstance(outputs, list) else tuple


def _output(part: Any, args: Any, inputs: dict[int, int], fresh: set[int]) -> Output | None:
    """Return the record of an output; None if it cannot be made again from the arguments."""
    if part is None:
        return Output(-1, False, torch.Size(), (), 0, None, None)
    if not isinstance(part, FakeTensor) or part.constant is not None or part.layout is not torch.strided:
        return None
    facts = (part.shape, part.stride(), int(part.storage_offset()), part.dtype, part.fake_device)
    for index, value in enumerate(args):
        if value is part:
            return Output(index, False, *facts)
    storage = part.untyped_storage()
    if storage._cdata in inputs:
        source = inputs[storage._cdata]
        return None if source < 0 or part.is_conj() or part.is_neg() else Output(source, True, *facts)
    if storage._cdata in fresh or storage.nbytes() != _bytes(part):
        return None
    fresh.add(storage._cdata)
    return Output(-1, False, *facts)


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of the storage that `torch.empty_strided` makes for a tensor."""
    if tensor.storage_offset():
        return -1
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _described(value: Any) -> Hashable:
    """Return what the outputs of an operation depend on. The type tells 1 from 1.0 and from True."""
    if isinstance(value, Tensor):
        kind = isinstance(value, FakeTensor)
        storage = value.untyped_storage().nbytes()
        return (kind, value.shape, value.stride(), value.dtype, value.storage_offset(), storage)
    if isinstance(value, tuple | list):
        return (type(value), *map(_described, value))
    return (type(value), value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in the arguments of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
