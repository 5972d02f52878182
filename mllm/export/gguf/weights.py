"""The tensors of a checkpoint, read a few rows at a time, so that a model of any size passes through little memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mllm.errors import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Planned:
    """A tensor on its way into a GGUF file: its name and shape there, and where its values come from."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]
    """Rows `start` to `stop` of the first dimension, in fp32."""


class Weights:
    """The tensors in a folder's safetensors files, by name; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises `ConfigError` where the folder has no safetensors, or where they cannot be read or hold no floats."""
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        for path in _files_of(folder):
            try:
                with safe_open(path, "pt") as handle:
                    for name in handle.keys():  # noqa: SIM118 (it is no dict)
                        part = handle.get_slice(name)
                        if part.get_dtype() not in _FLOATS:
                            raise ConfigError(
                                f"{path} holds {name} as {part.get_dtype()}: quantized weights cannot become a GGUF; "
                                "export the full-precision model"
                            )
                        self.shapes[name] = tuple(part.get_shape())
                        self._files[name] = path
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{path} cannot be read ({error}): download or export it again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.shapes, key=_natural))

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the tensor `name`, in fp32; rows beyond its end are zero."""
        end = self.shapes[name][0]
        # Opened anew each time: an open file keeps every page of it that was read in this process's memory.
        with safe_open(self._files[name], "pt") as handle:
            rows = handle.get_slice(name)[min(start, end) : min(stop, end)].to(torch.float32, copy=True)
        if stop <= end:
            return rows
        missing = stop - max(start, end)
        return torch.cat([rows, rows.new_zeros((missing, *self.shapes[name][1:]))])

    def whole(self, name: str) -> Tensor:
        """The tensor `name`, in fp32."""
        return self.read(name, 0, self.shapes[name][0])

    def planned(self, name: str, target: str, rows: int | None = None, offset: float = 0.0) -> Planned:
        """The tensor `name` as `target`: `rows` of it, or all; zeros where there are fewer; `offset` is added."""
        shape = self.shapes[name]
        shape = (shape[0] if rows is None else rows, *shape[1:])
        return Planned(target, shape, lambda start, stop: self.read(name, start, stop).add_(offset))


def fixed(target: str, value: Tensor) -> Planned:
    """A tensor that is already in memory."""
    return Planned(target, tuple(value.shape), lambda start, stop: value[start:stop].float())


def _files_of(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    raise ConfigError(
        f"'{folder}' holds no {SINGLE}: load it with transformers and save it again, which writes safetensors"
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
