"""Slices of tensors in safetensors files, read and written one block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.models.backbone.weight_files import DTYPES, TensorHeader, write_safetensors

BLOCK = 64 * 2**20
"""Bytes of the source that are in memory at a time."""
Spans = tuple[range, ...]
"""Ranges of indices, in output order."""


@dataclass(frozen=True)
class Cut:
    """A slice of a tensor in another file: ranges of rows (dimension 0) and columns (dimension 1). None: all."""

    source: Any
    """An open `safetensors.safe_open`."""
    name: str
    """Name of the tensor in the file."""
    rows: Spans | None = None
    columns: Spans | None = None

    def header(self, name: str) -> TensorHeader:
        """Return the header of the slice as the tensor `name`. Raise `ConfigError` for an unsupported dtype."""
        stored = self.source.get_slice(self.name)
        dtype, shape = str(stored.get_dtype()), list(stored.get_shape())
        if dtype not in DTYPES:
            raise ConfigError(f"{self.name} is stored as {dtype}; supported are {', '.join(DTYPES)}")
        for dimension, spans in enumerate((self.rows, self.columns)):
            if spans is not None:
                shape[dimension] = sum(map(len, spans))
        return TensorHeader(name, dtype, tuple(shape))

    def blocks(self, block: int = BLOCK) -> Iterator[Tensor]:
        """Yield the slice in order, from at most `block` bytes of the source at a time, at least one row."""
        stored = self.source.get_slice(self.name)
        shape = stored.get_shape()
        if not shape:
            yield self.source.get_tensor(self.name)
            return
        step = max(1, block // max(1, math.prod(shape[1:]) * DTYPES[stored.get_dtype()].itemsize))
        for span in self.rows or (range(shape[0]),):
            for start in range(span.start, span.stop, step):
                rows = stored[start : min(start + step, span.stop)]
                if self.columns is not None:
                    rows = torch.cat([rows[:, columns.start : columns.stop] for columns in self.columns], dim=1)
                yield rows


def write_cuts(path: Path, cuts: Mapping[str, Cut], advance: Callable[[int], object]) -> None:
    """Write a safetensors file of slices by their new names. `advance` is called with the number of bytes written."""
    headers = sorted((cut.header(name) for name, cut in cuts.items()), key=lambda header: header.order)
    blocks = (block for header in headers for block in cuts[header.name].blocks())
    write_safetensors(path, headers, blocks, advance)


def spans_of(indices: Sequence[int], width: int = 1) -> Spans:
    """Return the spans of groups of `width` neighbors with the given indices: [0, 1, 3] and 16 give 0-31, 48-63."""
    spans: list[range] = []
    for index in indices:
        start = index * width
        if spans and spans[-1].stop == start:
            start = spans.pop().start
        spans.append(range(start, (index + 1) * width))
    return tuple(spans)
