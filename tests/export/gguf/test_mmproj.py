"""Tests of mmproj files: llama.cpp and transformers compute equal image embeddings."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mllm.errors import ConfigError
from mllm.export.gguf.mmproj import export_mmproj
from mllm.export.gguf.model import export_model
from mllm.models.medgemma.medgemma_perception import POOL_KEY
from mllm.tiny.checkpoints import write_tiny
from tests.export.gguf.conftest import edited

SIDE, TOKENS = 112, 16


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 with images of 112 pixels: 8 x 8 patches, of which 2 x 2 make a token."""
    folder = write_tiny("medgemma", tmp_path_factory.mktemp("image_model") / "tiny", vision=dict(image_size=SIDE))
    edited(folder, mm_tokens_per_image=TOKENS)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if ".mlp.fc2." in name:
            weights[name] *= 0.3  # also reduces the rounding of llama.cpp's table of GELU before it
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def llama_cpp_embeddings(language: Path, mmproj: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the embeddings [N, D] by llama.cpp of an image with pixels [H, W, 3] uint8."""
    import llama_cpp
    from llama_cpp import mtmd_cpp as mtmd

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    mtmd.mtmd_helper_log_set(silent, None)
    model = llama_cpp.llama_model_load_from_file(str(language).encode(), llama_cpp.llama_model_default_params())
    settings = mtmd.mtmd_context_params_default()
    settings.use_gpu, settings.n_threads, settings.warmup, settings.flash_attn_type = False, 1, False, 0
    context = mtmd.mtmd_init_from_file(str(mmproj).encode(), model, settings)
    assert context, f"llama.cpp does not load {mmproj}"
    data = np.ascontiguousarray(pixels)
    bitmap = mtmd.mtmd_bitmap_init(
        pixels.shape[1], pixels.shape[0], data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    )
    chunks = mtmd.mtmd_input_chunks_init()
    text = mtmd.mtmd_input_text()
    text.text, text.text_len = mtmd.mtmd_default_marker(), len(mtmd.mtmd_default_marker())
    text.add_special, text.parse_special = True, True
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
    embeddings = None
    for index in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, index)
        if mtmd.mtmd_input_chunk_get_type(chunk) == 1:
            assert mtmd.mtmd_encode_chunk(context, chunk) == 0
            shape = (mtmd.mtmd_input_chunk_get_n_tokens(chunk), llama_cpp.llama_model_n_embd(model))
            embeddings = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), shape).copy()
    mtmd.mtmd_input_chunks_free(chunks)
    mtmd.mtmd_bitmap_free(bitmap)
    mtmd.mtmd_free(context)
    llama_cpp.llama_model_free(model)
    assert embeddings is not None
    return embeddings


@pytest.mark.parametrize(("kind", "allowed"), [("f32", 1e-3), ("q8_0", 2e-2)])
def test_image_features_equal_those_of_transformers(
    llama_cpp_quiet: Any, image_model: Path, kind: str, allowed: float, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    actual = llama_cpp_embeddings(
        export_model(image_model, tmp_path / "model.gguf", "f32"),
        export_mmproj(image_model, tmp_path / "mmproj.gguf", kind),
        pixels,
    )
    model: Any = AutoModelForImageTextToText.from_pretrained(image_model)
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        expected = model.model.get_image_features(values).pooler_output[0].numpy()
    assert actual.shape == expected.shape == (TOKENS, 128)
    assert expected.std() > 0.5
    assert np.abs(actual - expected).max() < allowed


@pytest.mark.parametrize(
    "layout", ["model.vision_tower.", "vision_tower.vision_model.", "model.vision_tower.vision_model."]
)
def test_the_names_of_all_versions_are_known(image_model: Path, layout: str, tmp_path: Path) -> None:
    """Versions of transformers write tensors under different names; the exported files are equal."""
    other = Path(shutil.copytree(image_model, tmp_path / "other"))
    weights = load_file(image_model / "model.safetensors")
    renamed = {re.sub(r"^(model\.)?vision_tower\.(vision_model\.)?", layout, name): weights[name] for name in weights}
    assert f"{layout}post_layernorm.weight" in renamed
    save_file(renamed, other / "model.safetensors", metadata={"format": "pt"})
    files = [export_mmproj(folder, tmp_path / f"{folder.name}.gguf", "f16") for folder in (image_model, other)]
    first, second = ({tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors} for file in files)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_model_without_a_vision_tower_is_refused(
    checkpoints: Callable[[str], Path], image_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no mmproj file: it has no vision tower; omit --mmproj"):
        export_mmproj(checkpoints("gemma3"), tmp_path / "mmproj.gguf", "f16")
    with pytest.raises(ConfigError, match="has no T5Gemma"):
        export_mmproj(write_tiny("t5gemma", tmp_path / "t5gemma"), tmp_path / "mmproj.gguf", "f16")
    folder = Path(shutil.copytree(image_model, tmp_path / "rectangular"))
    edited(folder, **{POOL_KEY: [2, 4]}, mm_tokens_per_image=8)
    with pytest.raises(ConfigError, match="8 tokens from a rectangular pool"):
        export_mmproj(folder, tmp_path / "mmproj.gguf", "f16")
    edited(Path(shutil.copytree(image_model, tmp_path / "uneven")), mm_tokens_per_image=9)
    with pytest.raises(ConfigError, match="9 image tokens do not form a square of its patches"):
        export_mmproj(tmp_path / "uneven", tmp_path / "mmproj.gguf", "f16")
    assert not (tmp_path / "mmproj.gguf").exists()
