"""Streamed models equal those of `from_pretrained`, in names and logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from mllm.models.backbone.streamed import (
    StoredWeight,
    Unstreamable,
    open_stored,
    own_tensors,
    reading,
    stored_names,
)
from mllm.tiny.checkpoints import write_tiny

FAMILIES: dict[str, Any] = {
    "medgemma": AutoModelForImageTextToText,
    "llava": AutoModelForImageTextToText,
    "qwen2_vl": AutoModelForImageTextToText,
    "gemma3n": AutoModelForCausalLM,
    "t5gemma": AutoModelForSeq2SeqLM,
}


def _open(family: str, folder: Path) -> Any:
    return open_stored(FAMILIES[family], folder, AutoConfig.from_pretrained(folder), dtype=torch.float32)


def _logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad(), reading(model):
        logits: torch.Tensor = model(input_ids=ids, **more).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_model_equals_the_loaded_model(family: str, tmp_path: Path) -> None:
    folder = write_tiny(family, tmp_path / family)
    stored, loaded = _open(family, folder), FAMILIES[family].from_pretrained(folder)
    ours, theirs = own_tensors(stored), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor.read() if isinstance(tensor, StoredWeight) else tensor, theirs[name]), name
    for (name, buffer), (own_name, own) in zip(stored.named_buffers(), loaded.named_buffers(), strict=True):
        assert name == own_name
        assert torch.equal(buffer, own), name
    in_files = sum(
        tensor.numel() for tensor in {id(t): t for t in ours.values() if isinstance(t, StoredWeight)}.values()
    )
    assert in_files > 0.5 * sum(parameter.numel() for parameter in loaded.parameters())
    assert torch.equal(_logits(stored), _logits(loaded))
    assert stored.generation_config.to_dict() == loaded.generation_config.to_dict()


def test_names_of_older_versions_are_understood(tmp_path: Path) -> None:
    folder = write_tiny("medgemma", tmp_path / "base", vision={"image_size": 224})
    expected = _logits(AutoModelForImageTextToText.from_pretrained(folder))
    tensors = load_file(folder / "model.safetensors")
    old = {}
    for name, tensor in tensors.items():  # in transformers 4.50 the names of both towers had one more level
        old[name.replace("vision_tower.", "vision_tower.vision_model.")] = tensor
    assert old.keys() != tensors.keys()
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(_logits(_open("medgemma", folder)), expected)


@pytest.mark.parametrize(
    "options",
    [dict(target_modules=["q_proj", "embed_tokens"]), dict(target_modules=["q_proj"], use_dora=True)],
    ids=["lora", "dora"],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_adapters_use_the_stored_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = write_tiny("gemma3n", tmp_path / "base")
    config = LoraConfig(r=2, init_lora_weights=False, **options)
    loaded = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).eval()
    loaded.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    stored = PeftModel.from_pretrained(_open("gemma3n", folder), tmp_path / "adapter")
    torch.testing.assert_close(_logits(stored), _logits(loaded), rtol=0, atol=1e-5)
    assert not torch.allclose(_logits(stored), _logits(_open("gemma3n", folder)), atol=1e-2)


def test_a_large_projection_is_read_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny("llava", tmp_path / "base")  # its output projection is a separate weight
    expected = _logits(AutoModelForImageTextToText.from_pretrained(folder))
    monkeypatch.setattr("mllm.models.backbone.streamed.TILE", 1000)  # seven rows of 128
    torch.testing.assert_close(_logits(_open("llava", folder)), expected, rtol=0, atol=1e-5)


def test_an_unread_weight_is_noticed(tmp_path: Path) -> None:
    model = _open("medgemma", write_tiny("medgemma", tmp_path / "base", vision={"image_size": 224}))
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[5, 6]])).logits.isnan().all()
    assert not _logits(model).isnan().any()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, "no longer tied"


def test_unstreamable_checkpoints_have_a_reason(tmp_path: Path) -> None:
    folder = write_tiny("gemma3n", tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    key = next(name for name in tensors if name.endswith("q_proj.weight"))
    lacking = {name: tensor for name, tensor in tensors.items() if name != key}
    save_file(lacking, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unstreamable, match=f"lack {key}"):
        _open("gemma3n", folder)
    save_file({**tensors, key: tensors[key][:-1].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unstreamable, match="has shape"):
        _open("gemma3n", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Unstreamable, match="no safetensors files"):
        _open("gemma3n", folder)


def test_unused_tensors_of_the_files_have_no_name(tmp_path: Path) -> None:
    folder = write_tiny("gemma3n", tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "audio.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    names = stored_names(_open("gemma3n", folder), folder)[folder / "model.safetensors"]
    assert [key for key, name in names.items() if name is None] == ["audio.weight"]


def test_own_tensors_leave_out_adapters_of_every_method(tmp_path: Path) -> None:
    """The names of the tensors of IA3 do not begin with `lora_`, and a base may have such names itself."""
    folder = write_tiny("gemma3n", tmp_path / "base")
    for config in (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), LoraConfig(target_modules=["q_proj"])):
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.lora_norm = torch.nn.LayerNorm(4)
        names = set(model.state_dict())
        assert set(own_tensors(get_peft_model(model, config).get_base_model())) == names
