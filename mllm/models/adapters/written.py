"""Comparison of files with the tensors in memory that were written to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mllm.errors import ConfigError
from mllm.protocols import Model


def save_compared(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file, read it back and compare; see `compare_written`.

    Raises:
        ConfigError: A tensor is empty or sharded, or the file differs from `tensors`.
    """
    for key, tensor in tensors.items():
        _refuse_part(key, tensor, None)
    copies = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
    save_file(copies, path, metadata={"format": "pt"})
    compare_written(path, tensors, set(tensors))


def compare_written(path: Path, tensors: Mapping[str, Tensor], required: set[str]) -> None:
    """Compare a safetensors file with tensors, one at a time, bit by bit in the dtype of the tensors.

    Args:
        path: The file.
        tensors: Tensors by their keys in the file.
        required: Keys that the file must have.

    Raises:
        ConfigError: The file cannot be read, or its keys, shapes, dtypes or values differ from those of `tensors`.
    """
    try:
        with safe_open(path, "pt") as opened:
            keys = set(opened.keys())
            difference = _difference_of_keys(keys, set(tensors), required)
            for key in sorted(keys) if difference is None else ():
                difference = difference or _difference(key, opened.get_tensor(key), tensors[key])
    except (OSError, SafetensorError) as error:
        difference = f"it cannot be read ({error})"
    if difference is not None:
        raise ConfigError(
            f"{path.name} differs from the tensors that were written to it: {difference}; check the disk, and repeat "
            "the command (a run with --resume)"
        )


def refuse_sharded_tensors(model: Model | nn.Module) -> None:
    """Raise `ConfigError` if this process has only parts of the trainable parameters of `model`.

    ZeRO-3 leaves tensors of shape (0,), FSDP leaves flattened parts or distributed tensors.
    """
    full_shapes = {
        id(module.weight): (module.out_features, module.in_features)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            _refuse_part(name, parameter, full_shapes.get(id(parameter)))


def _refuse_part(name: str, tensor: Tensor, full_shape: tuple[int, ...] | None) -> None:
    """Raise `ConfigError` if a tensor is empty, distributed, or of another shape than `full_shape` (None: unknown)."""
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor) and tensor.numel() and (full_shape is None or shape == full_shape):
        return
    expected = "" if full_shape is None else f" instead of {full_shape}"
    raise ConfigError(
        f"{name} has shape {shape} in this process{expected}: the training engine shards the weights, so nothing is "
        "written; train with DDP or DeepSpeed ZeRO-1 or ZeRO-2"
    )


def _difference_of_keys(keys: set[str], known: set[str], required: set[str]) -> str | None:
    """Return the first missing or unexpected key as a clause; None if there is none."""
    if missing := sorted(required - keys):
        return f"{missing[0]} is missing"
    if unexpected := sorted(keys - known):
        return f"it has {unexpected[0]}, which the model does not have"
    return None


def _difference(key: str, written: Tensor, expected: Tensor) -> str | None:
    """Return the difference of a written tensor as a clause; None if it is bit-equal. NaN equals NaN."""
    if written.shape != expected.shape:
        return f"{key} has shape {tuple(written.shape)} instead of {tuple(expected.shape)}"
    if written.dtype != expected.dtype:
        return f"{key} has dtype {written.dtype} instead of {expected.dtype}"
    values = expected.detach().cpu().contiguous()
    if not torch.equal(written.flatten().view(torch.uint8), values.flatten().view(torch.uint8)):
        return f"{key} has other values"
    return None
