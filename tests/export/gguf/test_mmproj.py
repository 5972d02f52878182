"""What llama.cpp sees through an mmproj file is what Gemma 3 sees in transformers."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from mllm.export.gguf.mmproj import export_mmproj
from mllm.export.gguf.model import export_model
from mllm.testing.tiny import write_tiny
from tests.export.gguf.conftest import edited

SIDE, TOKENS = 112, 16


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 with images of 112 pixels: 8 x 8 patches, of which 2 x 2 make a token."""
    folder = write_tiny("medgemma", tmp_path_factory.mktemp("seeing") / "tiny", vision=dict(image_size=SIDE))
    edited(folder, mm_tokens_per_image=TOKENS)
    return folder


def seen(language: Path, mmproj: Path, pixels: np.ndarray) -> np.ndarray:
    """llama.cpp's embeddings [N, D] of an image, whose pixels are [H, W, 3] uint8."""
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
    found = None
    for index in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, index)
        if mtmd.mtmd_input_chunk_get_type(chunk) == 1:
            assert mtmd.mtmd_encode_chunk(context, chunk) == 0
            shape = (mtmd.mtmd_input_chunk_get_n_tokens(chunk), llama_cpp.llama_model_n_embd(model))
            found = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), shape).copy()
    mtmd.mtmd_input_chunks_free(chunks)
    mtmd.mtmd_bitmap_free(bitmap)
    mtmd.mtmd_free(context)
    llama_cpp.llama_model_free(model)
    assert found is not None
    return found


@pytest.mark.parametrize(("kind", "allowed"), [("f32", 1e-3), ("q8_0", 2e-2)])
def test_an_image_is_seen_alike(llama_cpp_quiet: Any, seeing: Path, kind: str, allowed: float, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    found = seen(
        export_model(seeing, tmp_path / "model.gguf", "f32"),
        export_mmproj(seeing, tmp_path / "mmproj.gguf", kind),
        pixels,
    )
    model: Any = AutoModelForImageTextToText.from_pretrained(seeing)
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        expected = model.model.get_image_features(values).pooler_output[0].numpy()
    assert found.shape == expected.shape == (TOKENS, 128)
    print("MMPROJ", kind, np.abs(found - expected).max(), expected.std())
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() < allowed
