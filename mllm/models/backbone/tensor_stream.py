"""Writing of safetensors files from slices of other files, one block of rows at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 64 * 2**20
"""Bytes of the source that are in memory at a time."""
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
BITS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}
"""Bits per element, by the dtype names of safetensors."""

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

    @property
    def dtype(self) -> str:
        """Return the dtype of the tensor, by its safetensors name."""
        return str(self.source.get_slice(self.name).get_dtype())

    @property
    def shape(self) -> list[int]:
        """Return the shape of the slice."""
        shape = list(self.source.get_slice(self.name).get_shape())
        for dimension, spans in enumerate((self.rows, self.columns)):
            if spans is not None:
                shape[dimension] = sum(map(len, spans))
        return shape

    @property
    def elements(self) -> int:
        """Return the number of elements of the slice."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Return the size of the slice in bytes."""
        return self.elements * BITS[self.dtype] // 8

    def blocks(self, block: int = BLOCK) -> Iterator[Tensor]:
        """Yield the slice in order, from at most `block` bytes of the source at a time, at least one row."""
        stored = self.source.get_slice(self.name)
        shape = stored.get_shape()
        if not shape:
            yield self.source.get_tensor(self.name)
            return
        step = max(1, block // max(1, math.prod(shape[1:]) * BITS[self.dtype] // 8))
        for span in self.rows or (range(shape[0]),):
            for start in range(span.start, span.stop, step):
                rows = stored[start : min(start + step, span.stop)]
                if self.columns is not None:
                    rows = torch.cat([rows[:, columns.start : columns.stop] for columns in self.columns], dim=1)
                yield rows


def write_cuts(
    path: Path, cuts: Mapping[str, Cut], metadata: Mapping[str, str], advance: Callable[[int], object]
) -> None:
    """Write a safetensors file of slices by their new names. `advance` is called with the number of bytes written.

    Format: a length in 8 bytes, a JSON header of that length, the bytes of the tensors without gaps. Tensors with large
    elements come first, so each tensor is aligned to its element size, as in files written by safetensors.
    """
    order = sorted(cuts, key=lambda name: (-BITS[cuts[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + cuts[name].size
        header[name] = {"dtype": cuts[name].dtype, "shape": cuts[name].shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for block in cuts[name].blocks():
                data = block.contiguous().reshape(-1).view(torch.uint8).numpy()
                file.write(data.data)
                advance(data.nbytes)


def spans_of(indices: Sequence[int], width: int = 1) -> Spans:
    """Return the spans of groups of `width` neighbors with the given indices: [0, 1, 3] and 16 give 0-31, 48-63."""
    spans: list[range] = []
    for index in indices:
        start = index * width
        if spans and spans[-1].stop == start:
            start = spans.pop().start
        spans.append(range(start, (index + 1) * width))
    return tuple(spans)
