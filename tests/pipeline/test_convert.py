"""Tests of the command `convert`: the converted model and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration

from mllm.errors import ConfigError
from mllm.pipeline.convert import main
from mllm.tiny.checkpoints import write_tiny


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A checkpoint in the original layout of LLaVA, without its vision tower."""
    llama = write_tiny("llama", tmp_path / "llama")
    folder = tmp_path / "original"
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(llama)
    projector = {"model.mm_projector.weight": torch.randn(128, 64), "model.mm_projector.bias": torch.randn(128)}
    torch.save({**model.state_dict(), **projector}, folder / "pytorch_model.bin")
    config = model.config.to_dict() | {"model_type": "shikra", "mm_vision_tower": "openai/clip-vit-large-patch14"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_folder_of_the_model_is_printed(original, tmp_path, capsys):
    clip = write_tiny("clip", tmp_path / "clip")
    assert main(["--model", str(original), "--vision-tower", str(clip), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.config.projector_hidden_act == "linear"
    assert torch.equal(model.model.multi_modal_projector.linear_2.weight, torch.eye(128))
    with pytest.raises(ConfigError, match="is not empty; choose another folder"):
        main(["--model", str(original), "--out", str(tmp_path / "out")])


def test_a_failed_conversion_leaves_no_files(original, tmp_path):
    (original / "pytorch_model.bin").unlink()
    clip = write_tiny("clip", tmp_path / "clip")
    with pytest.raises(ConfigError, match="has no weights"):
        main(["--model", str(original), "--vision-tower", str(clip), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out*"))
