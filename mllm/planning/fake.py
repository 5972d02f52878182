"""Execution without numbers: operations on fake tensors, whose storages and operations are counted.

Tensors of floating-point numbers are fake: they have shape and dtype, and no memory. Token ids and masks stay real, so
that code which depends on their values, such as the choice of supervised positions, runs as in a training.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import bitsandbytes  # noqa: F401  # registers its operators
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from mllm.planning.memo import EXCLUDED, Memo, tensors_in

aten: Any = torch.ops.aten
DEVICE = torch.ops.prim.device.default
REAL_DTYPES = (torch.int64, torch.int32, torch.bool)
"""Dtypes of token ids, positions and masks, which are computed."""
SMALL = 64
"""Largest number of floating-point numbers of an input that stay real, such as counts."""
FEW = 256
"""Largest number of elements of a fake mask whose sum is known, because all of them are taken as true."""
DERIVED = 2**22
"""Largest number of floating-point numbers that are computed if they depend on real tensors only.

Some models choose the tokens of an image by such numbers.
"""
LARGE = 2**24
"""Largest number of ids, positions or elements of a mask that are computed. Attention masks of long rows, from which no
model reads a value, would take gigabytes.
"""
OUTSIDE = "other"
"""Component of storages that are created in no scope."""


class Record(weakref.ref[torch.UntypedStorage]):
    """Reference to a live storage, with its size in bytes and its component."""

    __slots__ = ("component", "key", "size")
    component: str
    key: int
    """Address of the storage."""
    size: int

    def __new__(cls, storage: torch.UntypedStorage, released: Any, component: str) -> Record:
        """Create the reference; `released` is called with it when the storage is freed."""
        self = super().__new__(cls, storage, released)
        self.key, self.size, self.component = storage._cdata, storage.nbytes(), component
        return self

    def __init__(self, *_: Any) -> None:
        """Do nothing: the constructor of references accepts two arguments."""


class FakeExecution(TorchDispatchMode):
    """Context in which floating-point tensors are fake, and live storages are counted by component.

    A number that is read from a fake tensor is 1, and a condition on one is true.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live: Counter[str] = Counter()
        """Bytes of live storages by component."""
        self.total = 0
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        """Bytes of live storages by component when their sum was largest."""
        self.flops = 0
        """Floating-point operations of matrix products, convolutions and attention. An addition counts as one."""
        self._records: dict[int, Record] = {}
        """Records of live storages by their addresses."""
        self._memo = Memo(self.fake)
        self._scopes = [OUTSIDE]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled here, and the wrapper that prevents it takes time at each operation."""
        return False

    def __enter__(self) -> Any:
        # transformers asks embeddings for their addresses, to count their parameters for a message.
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        self._original = nn.Module._apply
        nn.Module._apply = _apply  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        nn.Module._apply = self._original  # type: ignore[method-assign]
        self._warnings.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        kwargs = dict(kwargs or {})
        if func.namespace == "prim":
            return func(*args, **kwargs)
        tensors = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
        if any(tensor.is_meta and not isinstance(tensor, FakeTensor) for tensor in tensors) or _is_meta(kwargs):
            return func(*args, **kwargs)
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return self._run_fake(func, types, args, kwargs)
        if _broadcast(tensors) > LARGE and not any(tag in func.tags for tag in EXCLUDED):
            args, options = tree_map_only(Tensor, self._as_fake, (args, kwargs))
            return self._run_fake(func, types, args, options)
        outputs = self._run_real(func, args, kwargs) if tensors else self._create(func, types, args, kwargs)
        return self._counted(outputs, self._flops(func, args, kwargs, outputs))

    def _run_fake(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is aten._local_scalar_dense.default:
            return _number(args[0].dtype)
        if func in (aten.equal.default, aten.is_nonzero.default):
            return True
        if func is aten.nonzero.default:
            return self._counted(_nonzero(args[0]))
        if func is aten.sum.dim_IntList and _is_small_mask(args[0]):
            # The number of images of each sample (Idefics 3). Sums over pixels stay fake.
            return self._counted(func(torch.ones(args[0].shape, dtype=torch.bool), *args[1:], **kwargs))
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], _as_positions(args[1]), *args[2:])
        key = self._memo.key(func, args, kwargs)
        known = None if key is None else self._memo.find(key)
        if known is not None:
            return self._counted(self._memo.outputs(known, args), known.flops)
        outputs = self.fake.dispatch(func, types, args, kwargs)
        flops = self._flops(func, args, kwargs, outputs)
        if key is not None:
            self._memo.add(key, args, outputs, flops)
        return self._counted(outputs, flops)

    def _run_real(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on real tensors. Large floating-point results become fake."""
        return tree_map_only(Tensor, lambda tensor: self.fake_of(tensor, DERIVED), func(*args, **kwargs))

    def _create(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation without tensors, such as `torch.empty`."""
        dtype = kwargs.get("dtype")
        if dtype is None and func._overloadpacket is aten.arange:
            return self._run_real(func, args, kwargs)
        created: Any = self.fake.dispatch(func, types, args, kwargs)
        if isinstance(created, Tensor) and created.dtype in REAL_DTYPES and created.numel() <= LARGE:
            return func(*args, **kwargs)
        return created

    def _as_fake(self, tensor: Tensor) -> Tensor:
        return self.fake.from_tensor(tensor, static_shapes=True)

    def fake_of(self, tensor: Tensor, limit: int = SMALL) -> Tensor:
        """Return a fake tensor in the place of one with more floating-point numbers than `limit`, or the tensor."""
        if isinstance(tensor, FakeTensor) or tensor.dtype in REAL_DTYPES or tensor.numel() <= limit:
            return tensor
        return self._as_fake(tensor)

    def _flops(self, func: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> int:
        """Return the number of floating-point operations of a call."""
        formula = FLOPS.get(func._overloadpacket)
        return 0 if formula is None else int(formula(*args, **kwargs, out_val=outputs))

    def _counted(self, outputs: Any, flops: int = 0) -> Any:
        """Count the operations of a call and the new storages of its outputs, and return the outputs."""
        self.flops += flops
        for tensor in tensors_in(outputs):
            self.track(tensor)
        return outputs

    def track(self, tensor: Tensor, component: str | None = None) -> None:
        """Count the storage of a tensor; a storage that is counted already moves to `component` if it is set."""
        storage = tensor.untyped_storage()
        record = self._records.get(storage._cdata)
        if record is not None and record() is not None:
            if component is not None and component != record.component:
                self.live[record.component] -= record.size
                self.live[component] += record.size
                record.component = component
            return
        record = Record(storage, self._release, component or self._scopes[-1])
        self._records[record.key] = record
        self.live[record.component] += record.size
        self.total += record.size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.live)

    def _release(self, record: Record) -> None:
        self.live[record.component] -= record.size
        self.total -= record.size
        if self._records.get(record.key) is record:
            del self._records[record.key]

    def reset_peak(self) -> None:
        """Forget the peak and the operations before now."""
        self.peak, self.at_peak, self.flops = self.total, dict(self.live), 0

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Run the block outside of the context, which is the innermost one: processors compute pixels."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    @contextmanager
    def scope(self, component: str) -> Iterator[None]:
        """Count storages that are created in the block as `component`."""
        self.enter(component)
        try:
            yield
        finally:
            self.leave()

    def enter(self, component: str) -> None:
        """Count storages that are created from now on as `component`."""
        self._scopes.append(component)

    def leave(self) -> None:
        """End the innermost scope."""
        self._scopes.pop()


def _apply(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Apply a conversion to a module, as `nn.Module._apply` does, which cannot exchange the storage of fake tensors."""
    converted: dict[int, nn.Parameter] = {}
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in converted:
                with torch.no_grad():
                    tensor = fn(parameter)
                same = tensor is parameter or tensor.untyped_storage() is parameter.untyped_storage()
                converted[id(parameter)] = parameter if same else nn.Parameter(tensor, parameter.requires_grad)
            part._parameters[name] = converted[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fn(buffer)
    return module


def _broadcast(tensors: Sequence[Tensor]) -> int:
    """Return the number of elements of tensors that are broadcast, or of the largest one if they cannot be."""
    largest = max((tensor.numel() for tensor in tensors), default=0)
    if largest * largest <= LARGE:  # fast: almost all calls
        return largest
    try:
        return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    except RuntimeError:
        return largest


def _is_meta(kwargs: Mapping[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "meta"


def _number(dtype: torch.dtype) -> float | int | bool:
    if dtype is torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def _as_positions(indices: Any) -> list[Any]:
    """Return indices with masks replaced by the positions of their true elements; all elements of a fake one are true.

    The number of elements that a fake tensor selects is then known.
    """
    positions: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype is torch.bool:
            positions += _nonzero(index).unbind(1)
        else:
            positions.append(index)
    return positions


def _is_small_mask(tensor: Tensor) -> bool:
    return tensor.dtype is torch.bool and tensor.dim() <= 2 and tensor.numel() <= FEW


def _nonzero(mask: Tensor) -> Tensor:
    return (torch.ones(mask.shape, dtype=torch.bool) if isinstance(mask, FakeTensor) else mask).nonzero()


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, out_val: Any = None, **options: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, out_val: Any = None, **options: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


def _packed_product(x: Tensor, weight: Tensor, shape: Any, *rest: Any, out_val: Any = None, **options: Any) -> int:
    rows, columns = shape
    return 2 * (x.numel() // columns) * rows * columns


def _int8_product(x: Tensor, weight: Tensor, *rest: Any, out_val: Any = None, **options: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _formulas() -> dict[Any, Any]:
    """Return the number of operations by operator: PyTorch's formulas, and those of operators that it does not list."""
    ops: Any = torch.ops
    return {
        **flop_registry,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        ops.bitsandbytes.gemm_4bit: _packed_product,
        ops.bitsandbytes.int8_scaled_mm: _int8_product,
    }


FLOPS = _formulas()
