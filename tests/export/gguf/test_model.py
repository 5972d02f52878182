"""What llama.cpp computes from an exported file is what transformers computes from the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from mllm.export.gguf.model import export_model
from tests.export.gguf.conftest import as_llama_cpp, random_ids, reference, write_model

TOLERANCE = 2e-3
FAMILIES = ("llama", "gemma", "gemma2", "gemma3", "gemma3n")
SMALL = {
    "llama": {},
    "gemma": dict(num_hidden_layers=2),
    "gemma2": dict(num_hidden_layers=3),
    "gemma3": dict(num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "gemma3n": dict(damping=0.01),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(runtime: Callable[..., Any], family: str, tmp_path: Path) -> None:
    folder = write_model(family, tmp_path / family, **SMALL[family])
    expected = reference(AutoModelForCausalLM.from_pretrained(folder), random_ids())
    found = runtime(export_model(folder, tmp_path / "model.gguf", "f32")).logits(random_ids())
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_deeper_models_differ_by_the_activation_alone(
    checkpoints: Callable[[str], Path], runtime: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    folder = checkpoints(family)
    found = runtime(export_model(folder, tmp_path / "model.gguf", "f32")).logits(random_ids())
    expected = reference(as_llama_cpp(AutoModelForCausalLM.from_pretrained(folder)), random_ids())
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [("bf16", 0.1), ("f16", 0.03), ("q8_0", 0.1), ("q5_1", 1.5), ("q5_0", 1.5), ("q4_1", 2), ("q4_0", 3)],
)
def test_smaller_types_are_near(
    checkpoints: Callable[[str], Path], runtime: Callable[..., Any], kind: str, allowed: float, tmp_path: Path
) -> None:
    folder = write_model("gemma3", tmp_path / "model", **SMALL["gemma3"])
    exact = runtime(export_model(folder, tmp_path / "exact.gguf", "f32")).logits(random_ids())
    out = export_model(folder, tmp_path / f"{kind}.gguf", kind)
    difference = np.abs(runtime(out).logits(random_ids()) - exact).max()
    print("TYPE", kind, difference, out.stat().st_size)
    assert 0 < difference < allowed
    assert out.stat().st_size < 0.75 * (tmp_path / "exact.gguf").stat().st_size


def test_gemma3n_in_8_bits(checkpoints: Callable[[str], Path], runtime: Callable[..., Any], tmp_path: Path) -> None:
    folder = checkpoints("gemma3n")
    exact = runtime(export_model(folder, tmp_path / "exact.gguf", "f32")).logits(random_ids())
    found = runtime(export_model(folder, tmp_path / "q8_0.gguf", "q8_0")).logits(random_ids())
    print("TYPE gemma3n q8_0", np.abs(found - exact).max())
    assert 0 < np.abs(found - exact).max() < 0.5
