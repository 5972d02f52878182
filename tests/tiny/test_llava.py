"""The tiny LLaMA and CLIP load as published ones do; the tiny Shikra is the tiny LLaVA with other words around."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModel,
    LlavaProcessor,
)

from mllm.models.shikra.conversation import PREFACE
from mllm.tiny.checkpoints import write_tiny


def test_a_llama_has_no_vision_tower(tmp_path):
    folder = write_tiny("llama", tmp_path / "llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token is None and "<image>" not in tokenizer.get_vocab()
    assert model.config.vocab_size == len(tokenizer) == len(model.lm_head.weight)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    ids = tokenizer("What is shown in this image?", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        assert model(ids).logits.std() > 0.1
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000


def test_a_clip_has_a_text_tower(tmp_path):
    folder = write_tiny("clip", tmp_path / "clip", vision={"image_size": 56})
    assert all(parameter.abs().sum() > 0 for parameter in CLIPModel.from_pretrained(folder).parameters())
    vision = CLIPVisionModel.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder)
    assert images.crop_size["height"] == vision.config.image_size == 56
    with torch.no_grad():
        states = vision(torch.randn(2, 3, 56, 56)).last_hidden_state
    assert states.shape == (2, 1 + 16, 64) and (states[0] - states[1]).abs().mean() > 0.1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_shikra_is_the_llava_with_another_template(tiny_llava, tmp_path, name):
    folder = write_tiny("shikra", tmp_path / "shikra")
    assert (folder / name).read_bytes() == (tiny_llava / name).read_bytes()
    prompt = LlavaProcessor.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "Where?"}])
    assert prompt == f"{PREFACE} USER: Where? "
