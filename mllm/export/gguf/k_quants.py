"""Types that llama.cpp alone makes (K-quants): the model is written whole, then quantized by its library."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mllm.errors import ConfigError
from mllm.export.gguf.model import export_model
from mllm.models.loading import load_config

K_QUANTS = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k")
"""The types, largest first."""


def export_k_quant(folder: Path, out: Path, kind: str, *, name: str | None = None) -> Path:
    """As `export_model`, for a `kind` of `K_QUANTS`; the unquantized file lies beside `out` meanwhile.

    Raises `ConfigError` where llama-cpp-python is not installed.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise ConfigError(f"--type {kind} is made by llama.cpp, which is missing: pip install -e '.[parity]'")
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = load_config(str(folder)).dtype
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        whole, quantized = Path(temporary, "whole.gguf"), Path(temporary, "quantized.gguf")
        export_model(folder, whole, "bf16" if stored == torch.bfloat16 else "f32", name=name)
        _quantize(whole, quantized, kind)
        os.replace(quantized, out)
    return out


def _quantize(source: Path, target: Path, kind: str) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = vars(llama_cpp)[f"LLAMA_FTYPE_MOSTLY_{kind.upper()}"]
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if code != 0 or not target.is_file():
        raise ConfigError(
            f"llama.cpp could not make {kind} of this model (its own lines above say why); use q8_0, or a type of gguf"
        )
