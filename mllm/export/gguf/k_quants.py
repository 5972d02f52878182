"""K-quants: the model is written unquantized, and quantized by the library of llama.cpp."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from mllm.errors import ConfigError
from mllm.export.gguf.families import Family
from mllm.export.gguf.model import export_model, open_family
from mllm.models.backbone.loading import load_config

logger = logging.getLogger(__name__)

K_QUANTS = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k")
"""The types, largest first."""
BLOCK = 256
"""Number of values per block of a row. A matrix whose row length is not a multiple keeps a larger type."""
_ERROR = 4
"""The level of errors in the log of llama.cpp."""
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] .* \[ *(\d+), *(\d+),")
"""A tensor in the log of llama.cpp: its index, the number of tensors, the row length, the number of rows."""
_ROWS = 128 << 20
"""Buffer of llama.cpp for rows, in bytes (its default: 8 GiB)."""


def check_k_quant(family: Family, kind: str) -> None:
    """Raise `ConfigError` without llama.cpp, and if no row length of the model is a multiple of a block."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise ConfigError(
            f"--type {kind} needs llama.cpp, which is not installed: run pip install -e '.[parity]' (the build needs a "
            "C++ compiler and some minutes), or choose q8_0, q5_1, q5_0, q4_1 or q4_0"
        )
    widths = family.row_widths()
    if not any(width % BLOCK == 0 for width in widths):
        lengths = ", ".join(map(str, sorted(widths)))
        raise family.refuse(
            f"{kind} quantizes {BLOCK} values of a row together, and its rows have {lengths}; use q8_0, or q4_0"
        )


def export_k_quant(folder: Path, out: Path, kind: str, *, name: str | None = None) -> Path:
    """Write the language model in `folder` as a K-quant `kind`; see `export_model`.

    The unquantized file is a temporary file beside `out`. Raises `ConfigError` with the message of llama.cpp if it
    fails, and see `check_k_quant`.
    """
    check_k_quant(open_family(str(folder))[0], kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = load_config(str(folder)).dtype
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        unquantized, quantized = Path(temporary, "unquantized.gguf"), Path(temporary, out.name)
        export_model(folder, unquantized, "bf16" if stored == torch.bfloat16 else "f32", name=name)
        _quantize(unquantized, quantized, kind)
        os.replace(quantized, out)
    return out


@dataclass
class _Log:
    """Information from the log of llama.cpp."""

    narrow: int = 0
    """Number of matrices whose row length is not a multiple of a block."""
    errors: list[str] = field(default_factory=list)


def _quantize(source: Path, target: Path, kind: str) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = vars(llama_cpp)[f"LLAMA_FTYPE_MOSTLY_{kind.upper()}"]
    parameters.max_buf_size = _ROWS
    parameters.nthread = torch.get_num_threads()
    with tqdm(unit="tensor", desc=target.name) as progress, _log_to(llama_cpp, progress) as log:
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if code != 0 or not target.is_file():
        reason = log.errors[-1] if log.errors else "no reason was logged"
        raise ConfigError(f"llama.cpp could not make {kind} of this model ({reason}): use q8_0, or a type of gguf")
    if log.narrow:
        logger.info(
            "%d matrices have a larger type than %s: their row length is not a multiple of %d", log.narrow, kind, BLOCK
        )


@contextmanager
def _log_to(llama_cpp: Any, progress: Any) -> Iterator[_Log]:
    """Collect the log of llama.cpp inside the block and advance the progress bar, instead of printing it."""
    log = _Log()

    def receive(level: int, text: bytes, data: Any) -> None:
        line = text.decode(errors="replace").strip()
        if match := _TENSOR.match(line):
            index, count, width, rows = map(int, match.groups())
            progress.total = count
            progress.update(index - progress.n)
            log.narrow += rows > 1 and width % BLOCK > 0
        elif level == _ERROR and line:
            log.errors.append(line)

    callback, before, data = llama_cpp.llama_log_callback(receive), llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(callback, None)
    try:
        yield log
    finally:
        llama_cpp.llama_log_set(before, data)
