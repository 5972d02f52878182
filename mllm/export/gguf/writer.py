"""Writer of GGUF files, a few rows of one tensor at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.gguf_writer import WriterState
from tqdm import tqdm

from mllm.errors import ConfigError
from mllm.export.gguf.weights import PlannedTensor
from mllm.files import compared_file

logger = logging.getLogger(__name__)

Kind = gguf.GGMLQuantizationType
TYPES = {
    "f32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (Kind.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (Kind.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (Kind.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (Kind.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
"""The types that `gguf` writes: the type of the matrices, and the type of the file."""
_TABLES = ("token_embd.weight", "output.weight")
"""Matrices of embeddings and output; they keep 8 bits in smaller types."""
_FULL_PRECISION = ("_norm", "rope_freqs", "position_embd", "patch_embd", "_coef", "altup_router", "altup_correct_scale")
"""Parts of the names of small tensors in fp32: their errors propagate, or llama.cpp reads them only in fp32."""
_HALF = ("altup_proj.weight", "altup_unembd_proj.weight")
"""Three-dimensional tensors, which are not quantized."""
_CHUNK = 2 << 20
"""Number of values in memory at a time."""


def kind_of(tensor: PlannedTensor, matrix_type: Kind) -> Kind:
    """Return the type of a tensor in a file whose matrices have the type `matrix_type`; vectors are in fp32."""
    if len(tensor.shape) < 2 or any(word in tensor.name for word in _FULL_PRECISION):
        return Kind.F32
    if tensor.name in _HALF and matrix_type not in (Kind.F32, Kind.BF16):
        return Kind.F16
    if tensor.name in _TABLES and matrix_type in (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1):
        matrix_type = Kind.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[matrix_type]
    return matrix_type if tensor.shape[-1] % block == 0 else Kind.F16


def write_gguf(
    path: str | Path,
    arch: str,
    describe: Callable[[gguf.GGUFWriter], None],
    tensors: Sequence[PlannedTensor],
    kinds: Sequence[Kind],
) -> Path:
    """Write the metadata that `describe` adds and `tensors`, stored as `kinds`, to `path`; see `compared_file`.

    Raises `ConfigError` for values that are not finite or exceed the range of their type.
    """
    path = Path(path)
    # The writer gets an open file, and the bytes of the tensors are written to the same file.
    writer = gguf.GGUFWriter(None, arch)
    describe(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor, kind in zip(tensors, kinds, strict=True):
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), _bytes_of(tensor, kind), raw_dtype=kind)
    with compared_file(path) as file:
        writer.fout, writer.state = [file], WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_padding(file, file.tell())
        total = sum(_bytes_of(tensor, kind) for tensor, kind in zip(tensors, kinds, strict=True))
        with tqdm(total=total, unit="B", unit_scale=True, desc=path.name) as progress:
            for tensor, kind in zip(tensors, kinds, strict=True):
                _write_tensor(file, tensor, kind, progress)
                writer.write_padding(file, _bytes_of(tensor, kind))
    return path


def _write_tensor(file: Any, tensor: PlannedTensor, kind: Kind, progress: Any) -> None:
    rows = max(1, _CHUNK // max(1, prod(tensor.shape[1:])))
    written = 0
    for start in range(0, tensor.shape[0], rows):
        values = tensor.read(start, min(start + rows, tensor.shape[0])).contiguous().numpy()
        if not np.isfinite(values).all():
            raise ConfigError(f"{tensor.name} contains NaN or infinity, so it was not exported")
        with np.errstate(over="ignore"):
            stored = gguf.quants.quantize(values, kind)
        if kind == Kind.F16 and not np.isfinite(stored).all():
            raise ConfigError(
                f"{tensor.name} contains values beyond the range of f16, so it was not exported: use bf16"
            )
        file.write(np.ascontiguousarray(stored).data)
        written += stored.nbytes
        progress.update(stored.nbytes)
    assert written == _bytes_of(tensor, kind)


def _bytes_of(tensor: PlannedTensor, kind: Kind) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return prod(tensor.shape) // block * size


def log_narrow(tensors: Sequence[PlannedTensor], kinds: Sequence[Kind], matrix_type: Kind) -> None:
    """Log the number of matrices that are stored as f16 because their row length is not a multiple of a block."""
    count = sum(
        kind == Kind.F16 and matrix_type != Kind.F16 and tensor.name not in _HALF
        for tensor, kind in zip(tensors, kinds, strict=True)
    )
    if count:
        block, _ = gguf.GGML_QUANT_SIZES[matrix_type]
        logger.info("%d tensors are stored as f16: their row length is not a multiple of %d values", count, block)
