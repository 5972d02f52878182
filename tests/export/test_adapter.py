"""Tests of the exporter of adapters: PEFT loads the folder, and a failure leaves the previous one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.errors import ConfigError
from mllm.export.adapter import check_all_written, write
from mllm.export.facts import Facts
from mllm.export.folder import write_model
from mllm.export.tensor_names import compare_weights, new_model
from mllm.protocols import Bundle
from mllm.run_files import ADAPTER_WEIGHTS
from mllm.structures import Sample, Turn

Loader = Callable[..., tuple[Bundle, dict[str, Any]]]


def test_peft_computes_the_same_logits(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    folder = write(bundle, tmp_path / "adapter", facts=Facts(str(small_base), settings))
    batch = bundle.encoder.pad([bundle.encoder.prompt(Sample([Turn("user", "What is this?")]))])
    base = AutoModelForImageTextToText.from_pretrained(small_base).eval()
    with torch.no_grad():
        ours = bundle.model.backbone(**batch.student).logits
        plain = base(**batch.student).logits
        theirs = PeftModel.from_pretrained(base, folder).eval()(**batch.student).logits
    assert torch.equal(ours, theirs)
    assert not torch.allclose(plain, theirs, atol=1e-2), "the adapter changes nothing"


def test_the_folder_is_complete(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load(system="Be brief.")
    folder = write(bundle, tmp_path / "adapter", facts=Facts(str(small_base), settings))
    assert os.listdir(tmp_path) == ["adapter"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(small_base)
    assert json.loads((folder / "mllm.json").read_text())["system"] == "Be brief."
    assert "For research only; not for clinical use" in (folder / "README.md").read_text()
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.chat_template == bundle.encoder.processor.chat_template


def test_its_names_are_those_of_a_new_model(load: Loader, small_base: Path, tmp_path: Path) -> None:
    """vLLM expects the prefix of PEFT, a Linear layer of transformers, and A and B of one rank."""
    bundle, settings = load(adapter_path=None, lora_r=4, lora_target="language")
    folder = write(bundle, tmp_path / "adapter", facts=Facts(str(small_base), settings))
    model = new_model(small_base)
    assert model is not None
    modules = dict(model.named_modules())
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


def test_the_report_contains_the_obstacles_of_vllm(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()  # q_proj of both towers
    folder = write(bundle, tmp_path / "adapter", facts=Facts(str(small_base), settings))
    vllm = json.loads((folder / "export_report.json").read_text())["vllm"]
    assert not vllm["reads_it"]
    assert "model.vision_tower" in vllm["because"][0]


def test_a_failure_keeps_the_previous_adapter(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    facts = Facts(str(small_base), settings)
    folder = write(bundle, tmp_path / "adapter", facts=facts)
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(KeyError):
        write(bundle, folder, facts=replace(facts, settings={}))
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["adapter"]


def test_an_adapter_of_sharded_weights_is_refused(load: Loader, small_base: Path, tmp_path: Path) -> None:
    """ZeRO-3 leaves empty tensors in place of the parameters of the model."""
    bundle, settings = load()
    for parameter in bundle.model.backbone.parameters():
        if parameter.requires_grad:
            parameter.data = torch.empty(0)
    with pytest.raises(ConfigError, match=r"lora_A.default.weight has shape \(0,\) in this process"):
        write(bundle, tmp_path / "adapter", facts=Facts(str(small_base), settings))
    assert os.listdir(tmp_path) == []


def test_every_trained_parameter_must_be_in_a_file(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, settings = load()
    folder = write(bundle, tmp_path / "adapter", facts=Facts(str(small_base), settings))
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    lost = next(iter(tensors))
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, folder / ADAPTER_WEIGHTS)
    with pytest.raises(ConfigError, match="was trained, but no file of the adapter would contain it"):
        check_all_written(bundle.model, folder)


def test_a_merged_model_that_differs_from_its_files_is_refused(load: Loader, small_base: Path, tmp_path: Path) -> None:
    bundle, _ = load(adapter_path=None)
    write_model(bundle.model, tmp_path)
    with torch.no_grad():
        next(bundle.model.pretrained.parameters()).add_(1)
    with pytest.raises(
        ConfigError, match=r"model.safetensors differs from the tensors that were written to it: .* has other values"
    ):
        compare_weights(bundle.model.pretrained, tmp_path)
