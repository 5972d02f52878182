"""Reading and writing of Orbax checkpoints with one array in memory at a time."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mllm.errors import ConfigError, one_line

METADATA = "_METADATA"
"""File of an Orbax checkpoint with its tree of arrays."""
TRAINER_ITEM = "default"
"""Folder in a checkpoint of Kauldron's trainer that contains the Orbax checkpoint."""
_TRAINER_KEYS = {"params", "opt_state", "collections", "step"}
"""Keys of the state that Kauldron's trainer writes."""
_ROOT = "transformer/"
"""Start of the names in published checkpoints that are not nested."""

CHUNK = 2**28
"""Largest size of a chunk of an array in bytes; TensorStore compresses each as a whole."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes of arrays, by the names of numpy, that both frameworks have for weights."""


@dataclass(frozen=True)
class StoredArray:
    """One array of a checkpoint."""

    keys: tuple[str, ...]
    """Keys in the tree of the checkpoint."""
    shape: tuple[int, ...]
    dtype: str


class OrbaxCheckpoint:
    """An opened Orbax checkpoint, with the names of `layout.arrays` for its arrays.

    Published checkpoints are nested (`{"encoder": {"layer_0": ...}}`) or have joined keys
    (`{"transformer/encoder/layer_0/mlp/linear": {"w": ...}}`); the state of Kauldron's trainer is nested in `params`.
    """

    def __init__(self, folder: Path, checkpointer: Any) -> None:
        self.folder = folder
        self._checkpointer = checkpointer
        with _readable(folder):
            tree = checkpointer.metadata(folder).item_metadata.tree
        params = tree["params"] if tree.keys() >= _TRAINER_KEYS else tree
        prefix = () if params is tree else ("params",)
        self.arrays = {_name(array.keys): replace(array, keys=prefix + array.keys) for array in _leaves(params)}

    def read(self, name: str) -> Tensor:
        """Return the values of one array."""
        ocp = import_orbax()
        keys = self.arrays[name].keys
        args = ocp.args.PyTreeRestore(
            item=_nested(keys, 0),
            restore_args=_nested(keys, ocp.RestoreArgs(restore_type=np.ndarray)),
            partial_restore=True,
        )
        with _readable(self.folder):
            value = self._checkpointer.restore(self.folder, args=args)
        for key in keys:
            value = value[key]
        return _to_torch(value)


@contextmanager
def open_checkpoint(source: Path) -> Iterator[OrbaxCheckpoint]:
    """Open the Orbax checkpoint in a folder, or in a checkpoint of Kauldron's trainer.

    Raises `ConfigError` if there is none, if it cannot be read, or if Orbax is not installed.
    """
    folder = find_checkpoint(source)
    ocp = import_orbax()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        yield OrbaxCheckpoint(folder.absolute(), checkpointer)


def find_checkpoint(source: Path) -> Path:
    """Return the folder of the Orbax checkpoint in `source`. Raise `ConfigError` if there is none."""
    for folder in (source, source / TRAINER_ITEM):
        if (folder / METADATA).is_file():
            return folder
    if not source.is_dir():
        raise ConfigError(f"--model {source} does not exist; it must be the folder of an Orbax checkpoint")
    if inner := sorted(path.parent for path in source.rglob(METADATA)):
        raise ConfigError(f"--model {source} contains checkpoints in folders; pass one of them, such as {inner[-1]}")
    raise ConfigError(f"--model {source} is not an Orbax checkpoint: it has no file {METADATA}")


def import_orbax() -> Any:
    """Return the module of Orbax. Raise `ConfigError` if it is not installed."""
    # The arrays never reach a device, and JAX would reserve most memory of a GPU.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        from orbax import checkpoint
    except ImportError as error:
        raise ConfigError(
            f"checkpoints of Flax need the package orbax-checkpoint ({one_line(str(error))}): "
            "run pip install -e '.[jax]'"
        ) from error
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax warns of every default, and logs what it raises
    return checkpoint


def write_checkpoint(
    folder: Path,
    names: Iterable[str],
    read: Callable[[str], Tensor],
    advance: Callable[[int], object],
) -> None:
    """Write an Orbax checkpoint with nested keys, one array at a time.

    Args:
        folder: Folder of the checkpoint, which must not exist.
        names: Names of the arrays, with slashes between their keys.
        read: Function that returns the values of an array.
        advance: Function that is called with the number of bytes of each written array.

    Raises:
        OSError: The files cannot be written, for example because the disk is full.
    """
    ocp = import_orbax()
    chunked = ocp.SaveArgs(chunk_byte_size=CHUNK)

    class Handler(ocp.type_handlers.NumpyHandler):  # type: ignore[name-defined]
        """Writer of named arrays in the format of numpy arrays. That of Orbax would take all values at once."""

        async def serialize(self, values: Sequence[_Named], infos: Sequence[Any], args: Any = None) -> list[Any]:
            for value, info in zip(values, infos, strict=True):
                array = _to_numpy(read(value.name)).view(_Unshared)
                for pending in await super().serialize([array], [info], [chunked]):
                    pending.result()
                advance(array.nbytes)
            return []

    registry = ocp.type_handlers.create_type_handler_registry((_Named, Handler()))
    tree: dict[str, Any] = {}
    for name in names:
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = _Named(name)
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with _writable(folder), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))


@dataclass(frozen=True)
class _Named:
    """An array in the tree of a checkpoint whose values are read when they are written."""

    name: str


class _Unshared(np.ndarray):
    """An array that nothing else changes, so that Orbax need not copy it before it writes."""

    def __deepcopy__(self, memo: Any) -> _Unshared:
        return self


def _leaves(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[StoredArray]:
    """Yield the arrays of a tree of metadata. Other values, such as scalars, have the name of their kind as dtype."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*keys, str(key)))
    elif isinstance(tree, import_orbax().metadata.ArrayMetadata):
        yield StoredArray(keys, tuple(tree.shape), str(np.dtype(tree.dtype)))
    elif tree is not None:
        yield StoredArray(keys, (), type(tree).__name__)


def _name(keys: tuple[str, ...]) -> str:
    """Return the name of an array in `layout.arrays`."""
    name = "/".join(keys).removeprefix(_ROOT)
    # Checkpoints with joined keys have one more key at the arrays of feed-forward layers.
    return name.removesuffix("/w") if name.endswith(("/gating_einsum/w", "/linear/w")) else name


def _nested(keys: Sequence[str], value: Any) -> Any:
    """Return nested dicts with one leaf."""
    for key in reversed(keys):
        value = {key: value}
    return value


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Convert errors of Orbax and TensorStore about a damaged checkpoint, which have many types, to `ConfigError`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the Orbax checkpoint {folder} cannot be read ({type(error).__name__}: {one_line(str(error))[:200]}): a "
            "file is damaged or missing; download it again"
        ) from error


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Convert errors of the file system, which TensorStore reports by the texts of `ValueError`, to `OSError`."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error


def _to_torch(array: Any) -> Tensor:
    """Return a tensor with the memory of an array of numpy, whose bfloat16 is that of another package."""
    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_numpy(tensor: Tensor) -> Any:
    """Return an array of numpy with the memory of a tensor."""
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes  # a dependency of JAX

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.contiguous().numpy()
