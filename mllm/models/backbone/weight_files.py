"""Safetensors files of a checkpoint: their names, the dtypes in their headers, and a writer of one block at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllm.files import compared_file, write_json
from mllm.run_files import MODEL_INDEX, MODEL_WEIGHTS

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of dtypes in the headers of safetensors files."""


@dataclass(frozen=True)
class TensorHeader:
    """Name, dtype and shape of a tensor in a safetensors file."""

    name: str
    dtype: str
    """One of `DTYPES`."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.elements * DTYPES[self.dtype].itemsize

    @property
    def order(self) -> tuple[int, str]:
        """Return the sort key of the tensors of a file.

        As in files of safetensors, tensors with large elements come first, so that each is aligned to its element size.
        """
        return -DTYPES[self.dtype].itemsize, self.name


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint in the order of their names; an empty list if it has none."""
    if (folder / MODEL_WEIGHTS).is_file():
        return [folder / MODEL_WEIGHTS]
    return indexed_files(folder / MODEL_INDEX) if (folder / MODEL_INDEX).is_file() else []


def indexed_files(index: Path) -> list[Path]:
    """Return the weight files that an index of transformers names, in the order of their names."""
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return [index.parent / name for name in sorted(names)]


def file_names(count: int) -> list[str]:
    """Return the names of the `count` weight files of a checkpoint."""
    if count == 1:
        return [MODEL_WEIGHTS]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def write_index(folder: Path, weight_map: Mapping[str, str], **metadata: int) -> None:
    """Write the index of a checkpoint with several weight files.

    Args:
        folder: Folder of the checkpoint.
        weight_map: Name of a tensor -> name of its file.
        metadata: Facts about the checkpoint, such as `total_size` in bytes.
    """
    write_json(folder / MODEL_INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def write_safetensors(
    path: Path,
    tensors: Sequence[TensorHeader],
    blocks: Iterable[Tensor],
    advance: Callable[[int], object] = lambda size: None,
) -> None:
    """Write a safetensors file block by block, and compare it with what was written; see `compared_file`.

    The format is a length of 8 bytes, a JSON header that is padded to 8 bytes, and the bytes of the tensors without
    gaps (https://github.com/huggingface/safetensors#format).

    Args:
        path: The file.
        tensors: Tensors in the order of the file; see `TensorHeader.order`.
        blocks: Values of all tensors in this order. A tensor may be divided into blocks of rows.
        advance: Function that is called with the number of bytes of each written block.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with compared_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for block in blocks:
            if block.numel():
                file.write(block.contiguous().flatten().view(torch.uint8).numpy().data)
            advance(block.numel() * block.element_size())
        assert file.tell() == 8 + len(text) + end, f"{path}: the blocks have another size than the tensors"
