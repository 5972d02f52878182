"""Reader of the tensors of a checkpoint, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mllm.errors import ConfigError
from mllm.models.backbone.weight_files import weight_files
from mllm.run_files import MODEL_WEIGHTS

_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of a GGUF file: name, shape, and a function that reads its values."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]
    """Returns rows `start` to `stop` of the first dimension, in fp32."""


class Weights:
    """The tensors in the safetensors files of a folder by name, read on demand."""

    def __init__(self, folder: Path) -> None:
        """Raise `ConfigError` if there are no safetensors files, or they cannot be read or contain no floats."""
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        files = weight_files(folder)
        if not files:
            raise ConfigError(
                f"'{folder}' contains no {MODEL_WEIGHTS}: load it with transformers and save it again, which writes "
                "safetensors"
            )
        for path in files:
            try:
                with safe_open(path, "pt") as handle:
                    for name in handle.keys():  # noqa: SIM118 (not a dict)
                        part = handle.get_slice(name)
                        if part.get_dtype() not in _FLOATS:
                            raise ConfigError(
                                f"{path} contains {name} as {part.get_dtype()}: quantized weights cannot become a GGUF "
                                "file; export the full-precision model"
                            )
                        self.shapes[name] = tuple(part.get_shape())
                        self._files[name] = path
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{path} cannot be read ({error}): download or export it again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.shapes, key=_natural))

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` of the tensor `name` in fp32; rows beyond its end are zero."""
        end = self.shapes[name][0]
        # Opened for each read: the pages that were read stay in memory while a file is open.
        with safe_open(self._files[name], "pt") as handle:
            rows = handle.get_slice(name)[min(start, end) : min(stop, end)].to(torch.float32, copy=True)
        if stop <= end:
            return rows
        missing = stop - max(start, end)
        return torch.cat([rows, rows.new_zeros((missing, *self.shapes[name][1:]))])

    def tensor(self, name: str) -> Tensor:
        """Return the tensor `name` in fp32."""
        return self.read(name, 0, self.shapes[name][0])

    def planned(self, name: str, target: str, rows: int | None = None, offset: float = 0.0) -> PlannedTensor:
        """Return the tensor `name` as `target` with `rows` rows (None: all; added rows are zero) plus `offset`."""
        shape = self.shapes[name]
        shape = (shape[0] if rows is None else rows, *shape[1:])
        return PlannedTensor(target, shape, lambda start, stop: self.read(name, start, stop).add_(offset))


def fixed(target: str, value: Tensor) -> PlannedTensor:
    """Return a tensor that is in memory as a tensor of the file."""
    return PlannedTensor(target, tuple(value.shape), lambda start, stop: value[start:stop].float())


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
