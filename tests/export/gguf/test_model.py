"""Tests of exported models: llama.cpp and transformers compute equal logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, VaultGemmaConfig

from mllm.errors import ConfigError
from mllm.export.gguf.model import export_model, open_family, refuse_settings
from mllm.models.medgemma.medgemma_perception import POOL_KEY
from mllm.run_files import TRAINED as HEADS
from mllm.tiny.checkpoints import write_tiny
from mllm.tiny.vocabulary import BYTES, TEXT
from tests.export.gguf.conftest import TOKENS, as_llama_cpp, edited, random_ids, reference, write_model

TOLERANCE = 2e-3
FAMILIES = ("llama", "gemma", "gemma2", "gemma3", "gemma3n")
UNLIKE_PUBLISHED = ["sliding_attention", "full_attention", "sliding_attention"]
CALM: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma": dict(num_hidden_layers=2),
    "gemma2": dict(num_hidden_layers=3),
    "gemma3": dict(num_hidden_layers=3, layer_types=UNLIKE_PUBLISHED, damping=0.1),
    "gemma3n": dict(damping=0.03),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(runtime: Callable[..., Any], family: str, tmp_path: Path) -> None:
    folder = write_model(family, tmp_path / family, **CALM[family])
    expected = reference(AutoModelForCausalLM.from_pretrained(folder), random_ids())
    logits = runtime(export_model(folder, tmp_path / "model.gguf", "f32")).logits(random_ids())
    assert len(expected) == 64
    assert expected.std() > 0.5
    assert np.abs(logits - expected).max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_other_models_differ_only_by_the_activation(
    checkpoints: Callable[[str], Path], runtime: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    """Deeper models with scaled rotary embeddings: equal logits if transformers uses llama.cpp's table of GELU."""
    folder = checkpoints(family)
    logits = runtime(export_model(folder, tmp_path / "model.gguf", "f32")).logits(random_ids())
    expected = reference(as_llama_cpp(AutoModelForCausalLM.from_pretrained(folder)), random_ids())
    assert expected.std() > 0.5
    assert np.abs(logits - expected).max() < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma3n"])
def test_greedy_text_is_the_same(runtime: Callable[..., Any], family: str, tmp_path: Path) -> None:
    folder = write_model(family, tmp_path / family, **CALM[family])
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    opened = runtime(export_model(folder, tmp_path / "model.gguf", "f32"))
    # Invalid UTF-8 is decoded differently, so special tokens, byte tokens and unused ids are left out.
    never = [*range(len(TOKENS) + len(BYTES)), *range(len(tokenizer), model.config.vocab_size)]
    for start in (0, 100, 200):
        prompt = TEXT[start : start + 60]
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert opened.tokens(prompt, special=True) == ids[0].tolist()
        generated = model.generate(ids, do_sample=False, max_new_tokens=24, suppress_tokens=never)
        spoken = generated[0, ids.shape[1] :].tolist()
        logits = opened.logits(generated[0, :-1].tolist())[ids.shape[1] - 1 :]
        logits[:, never] = -np.inf
        assert logits.argmax(-1).tolist() == spoken  # by induction, llama.cpp generates the same
        assert opened.text(spoken) == tokenizer.decode(spoken, skip_special_tokens=True)
        assert len(spoken) == 24


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [("bf16", 0.05), ("f16", 0.01), ("q5_1", 1.5), ("q5_0", 1.5), ("q4_1", 2), ("q4_0", 3)],
)
def test_smaller_types_have_similar_logits(
    runtime: Callable[..., Any], kind: str, allowed: float, tmp_path: Path
) -> None:
    folder = write_model("gemma3", tmp_path / "model", **CALM["gemma3"])
    exact = runtime(export_model(folder, tmp_path / "exact.gguf", "f32")).logits(random_ids())
    out = export_model(folder, tmp_path / f"{kind}.gguf", kind)
    assert 0 < np.abs(runtime(out).logits(random_ids()) - exact).max() < allowed
    assert out.stat().st_size < 0.75 * (tmp_path / "exact.gguf").stat().st_size


@pytest.mark.parametrize(("family", "allowed"), [("llama", 0.1), ("gemma3", 0.1), ("gemma3n", 0.1)])
def test_8_bits_have_similar_logits(runtime: Callable[..., Any], family: str, allowed: float, tmp_path: Path) -> None:
    folder = write_model(family, tmp_path / family, **(CALM[family] or dict(num_hidden_layers=1, damping=0.1)))
    expected = reference(AutoModelForCausalLM.from_pretrained(folder), random_ids())
    logits = runtime(export_model(folder, tmp_path / "q8_0.gguf", "q8_0")).logits(random_ids())
    assert 0 < np.abs(logits - expected).max() < allowed


def test_shards_are_one_model(runtime: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_model("llama", tmp_path / "whole")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    shutil.copytree(folder, tmp_path / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    expected = reference(model.float(), random_ids())
    logits = runtime(export_model(tmp_path / "shards", tmp_path / "model.gguf", "bf16")).logits(random_ids())
    assert np.abs(logits - expected).max() < 0.1
    logits = runtime(export_model(tmp_path / "shards", tmp_path / "exact.gguf", "f32")).logits(random_ids())
    assert np.abs(logits - expected).max() < 1e-4


def test_the_language_model_of_gemma_3_with_images(
    tiny_medgemma: Path, runtime: Callable[..., Any], tmp_path: Path
) -> None:
    out = export_model(tiny_medgemma, tmp_path / "model.gguf", "f32", name="image-model")
    model = as_llama_cpp(AutoModelForImageTextToText.from_pretrained(tiny_medgemma))
    expected = reference(model, random_ids())
    opened = runtime(out)
    assert np.abs(opened.logits(random_ids()) - expected).max() < TOLERANCE
    assert opened.metadata("general.name") == "image-model"


def test_features_that_llama_cpp_lacks_are_refused(tmp_path: Path) -> None:
    t5gemma = write_tiny("t5gemma", tmp_path / "t5gemma")
    with pytest.raises(ConfigError, match=r"t5gemma' cannot become a GGUF: llama.cpp has no T5Gemma"):
        export_model(t5gemma, tmp_path / "out.gguf", "f32")
    VaultGemmaConfig().save_pretrained(tmp_path / "vault")
    with pytest.raises(ConfigError, match="has no VaultGemma, and its softcaps fit neither"):
        open_family(str(tmp_path / "vault"))
    llava = write_tiny("llava", tmp_path / "llava")
    with pytest.raises(ConfigError, match="its type is llava, and supported are llama, gemma, gemma2"):
        open_family(str(llava))
    assert not (tmp_path / "out.gguf").exists()


def test_models_that_the_format_cannot_represent_are_refused(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    def refusal(family: str, **values: Any) -> str:
        folder = Path(shutil.copytree(checkpoints(family), tmp_path / f"{len(list(tmp_path.iterdir()))}"))
        edited(folder, **values)
        with pytest.raises(ConfigError, match="cannot become a GGUF") as excinfo:
            export_model(folder, tmp_path / "out.gguf", "f32")
        return str(excinfo.value)

    assert "from a rectangular pool" in refusal("gemma3", **{POOL_KEY: [8, 16], "mm_tokens_per_image": 128})
    assert "weights are quantized" in refusal("llama", quantization_config=dict(quant_method="bitsandbytes"))
    assert "activation is relu" in refusal("gemma", hidden_act="relu", hidden_activation="relu")
    assert "query_pre_attn_scalar is 48" in refusal("gemma3", query_pre_attn_scalar=48)
    assert "its laurel_rank is 32" in refusal("gemma3n", laurel_rank=32)
    assert "num_kv_shared_layers is 19" in refusal("gemma3n", num_kv_shared_layers=2)
    assert "different feed-forward widths" in refusal("gemma3n", intermediate_size=[1024] * 20 + [512])
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    assert "rope scaling is yarn" in refusal("llama", rope_parameters=rope)
    assert "layer 7 lacks attn_k.weight" in refusal("llama", num_hidden_layers=8)


def test_heads_and_rectangular_pools_are_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints("gemma3"), tmp_path / "model"))
    (folder / HEADS).touch()
    with pytest.raises(ConfigError, match="it has heads"):
        open_family(str(folder))
    with pytest.raises(ConfigError, match="'x' cannot become a GGUF: it has heads"):
        refuse_settings("x", {"heads": {"box": {"type": "BoxHead"}}})
    with pytest.raises(ConfigError, match="128 tokens from a rectangular pool"):
        refuse_settings("x", {"image_token_len": 128})
    with pytest.raises(ConfigError, match="'x' cannot become a GGUF: it is a vision model, which generates no text"):
        refuse_settings("x", {"part": "vision", "heads": {"measures": {}}})
    refuse_settings("x", {"image_token_len": 64, "heads": None})
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gemma3_text"
