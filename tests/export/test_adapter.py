"""The adapter folder is what PEFT loads, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.export.adapter import write
from mllm.export.card import Facts
from mllm.export.tensor_names import fresh_model
from mllm.structures import Bundle, Sample, Turn

Loader = Callable[..., tuple[Bundle, dict[str, Any]]]


def test_peft_loads_it_and_says_the_same(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    folder = write(bundle, tmp_path / "adapter", settings=settings, facts=Facts(base=str(small_base)))
    batch = bundle.encoder.pad([bundle.encoder.prompt(Sample([Turn("user", "What is this?")]))])
    base = AutoModelForImageTextToText.from_pretrained(small_base).eval()
    with torch.no_grad():
        ours = bundle.model.backbone(**batch.student).logits
        plain = base(**batch.student).logits
        theirs = PeftModel.from_pretrained(base, folder).eval()(**batch.student).logits
    assert torch.equal(ours, theirs)
    assert not torch.allclose(plain, theirs, atol=1e-2), "the adapter changes nothing"


def test_all_that_is_needed_lies_in_it(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load(system="Be brief.")
    folder = write(bundle, tmp_path / "adapter", settings=settings, facts=Facts(base=str(small_base)))
    assert os.listdir(tmp_path) == ["adapter"]
    said = json.loads((folder / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(small_base)
    assert json.loads((folder / "mllm.json").read_text())["system"] == "Be brief."
    assert "For research only; not for clinical use" in (folder / "README.md").read_text()
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.chat_template == bundle.encoder.processor.chat_template


def test_its_names_are_those_of_a_fresh_model(load: Loader, small_base: Path, tmp_path: Path) -> None:
    """As vLLM looks them up: the prefix of PEFT, a Linear layer of stock transformers, A or B of one rank."""
    bundle, settings = load(adapter_path=None, lora_r=4, lora_target="language")
    folder = write(bundle, tmp_path / "adapter", settings=settings, facts=Facts(base=str(small_base)))
    fresh = fresh_model(small_base)
    assert fresh is not None
    modules = dict(fresh.named_modules())
    tensors = load_file(folder / "adapter_model.safetensors")
    for key, tensor in tensors.items():
        name, part = key.removeprefix("base_model.model.").rsplit(".lora_", 1)
        layer = modules[name]
        assert isinstance(layer, torch.nn.Linear)
        shapes = {"A.weight": (4, layer.in_features), "B.weight": (layer.out_features, 4)}
        assert tuple(tensor.shape) == shapes[part]
    report = json.loads((folder / "export_report.json").read_text())
    assert report["vllm"] == {"reads_it": True, "because": []}
    assert (report["rank"], report["tensors"]) == (4, len(tensors))


def test_what_vllm_does_not_read_is_told(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()  # q_proj of both towers
    folder = write(bundle, tmp_path / "adapter", settings=settings, facts=Facts(base=str(small_base)))
    vllm = json.loads((folder / "export_report.json").read_text())["vllm"]
    assert not vllm["reads_it"]
    assert "model.vision_tower" in vllm["because"][0]


def test_a_failure_keeps_the_adapter_that_was_there(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    facts = Facts(base=str(small_base))
    folder = write(bundle, tmp_path / "adapter", settings=settings, facts=facts)
    before = (folder / "adapter_model.safetensors").read_bytes()
    del settings["type"]
    with pytest.raises(KeyError):
        write(bundle, folder, settings=settings, facts=facts)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["adapter"]
