"""Tests of K-quants, which llama.cpp makes from models whose rows consist of whole blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mllm.errors import ConfigError
from mllm.export.gguf import k_quants
from mllm.export.gguf.k_quants import K_QUANTS, check_k_quant, export_k_quant
from mllm.export.gguf.model import export_model, open_family
from tests.export.gguf.conftest import random_ids, write_model

WIDE = dict(hidden_size=256, intermediate_size=512, head_dim=64, num_hidden_layers=2)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA in which all rows have a multiple of 256 values."""
    return write_model("llama", tmp_path_factory.mktemp("wide") / "tiny-llama", **WIDE)


def tensors(file: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Return the type and the values of each tensor, read by the package `gguf`."""
    return {
        tensor.name: (tensor.tensor_type.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(file).tensors
    }


@pytest.mark.parametrize(("kind", "main", "allowed"), [("q6_k", "Q6_K", 0.03), ("q4_k_m", "Q4_K", 0.12)])
def test_only_matrices_are_quantized(
    wide: Path, runtime: Callable[..., Any], kind: str, main: str, allowed: float, tmp_path: Path
) -> None:
    exact = export_model(wide, tmp_path / "exact.gguf", "f32")
    out = export_k_quant(wide, tmp_path / "out" / f"{kind}.gguf", kind, name="first-aid")
    before, after = tensors(exact), tensors(out)
    assert before.keys() == after.keys()
    kinds = {name: kind for name, (kind, _) in after.items()}
    assert {kinds[name] for name in kinds if "norm" in name} == {"F32"}
    assert all(kind.endswith("_K") for name, kind in kinds.items() if "norm" not in name)
    assert main in kinds.values()
    for name, (_, values) in after.items():
        assert np.abs(values - before[name][1]).std() <= allowed * before[name][1].std(), name
    opened = runtime(out)
    assert opened.metadata("general.name") == "first-aid"
    difference = opened.logits(random_ids()) - runtime(exact).logits(random_ids())
    assert 0 < difference.std() < 1
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_narrow_matrices_keep_a_larger_type(
    llama_cpp_quiet: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model("llama", tmp_path / "model", **{**WIDE, "hidden_size": 320})
    with caplog.at_level(logging.INFO, "mllm"):
        types = tensors(export_k_quant(folder, tmp_path / "out.gguf", "q4_k_s"))
    narrow = [name for name, (_, values) in types.items() if values.ndim == 2 and values.shape[-1] % 256]
    assert {types[name][0] for name in narrow} == {"Q5_0", "Q5_1", "Q8_0"}
    assert types["blk.0.ffn_down.weight"][0] in ("Q4_K", "Q5_K")
    assert (
        f"{len(narrow)} matrices have a larger type than q4_k_s: their row length is not a multiple of 256"
        in caplog.text
    )


def test_rows_that_are_not_divisible_into_blocks_are_refused(llama_cpp_quiet: Any, tmp_path: Path) -> None:
    folder = write_model("llama", tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(ConfigError, match="q4_k_m quantizes 256 values of a row together, and its rows have 64, 128;"):
        export_k_quant(folder, tmp_path / "out.gguf", "q4_k_m")
    assert not (tmp_path / "out.gguf").exists()


def test_the_message_of_llama_cpp_about_a_failure_is_passed_on(
    wide: Path, llama_cpp_quiet: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The input is not a GGUF file."""

    def damaged(folder: Path, out: Path, kind: str, **options: Any) -> Path:
        out.write_bytes(b"GGUF" + bytes(100))
        return out

    monkeypatch.setattr(k_quants, "export_model", damaged)
    with pytest.raises(ConfigError, match=r"llama.cpp could not make q6_k of this model \(.*model"):
        export_k_quant(wide, tmp_path / "out" / "model.gguf", "q6_k")
    assert list((tmp_path / "out").iterdir()) == []


def test_every_type_is_one_of_llama_cpp(llama_cpp_quiet: Any) -> None:
    assert all(f"LLAMA_FTYPE_MOSTLY_{kind.upper()}" in vars(llama_cpp_quiet) for kind in K_QUANTS)


def test_without_llama_cpp_the_message_says_how_to_install_it(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_quants.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--type q4_k_m needs llama.cpp, which is not installed: run pip install -e"):
        check_k_quant(open_family(str(wide))[0], "q4_k_m")
