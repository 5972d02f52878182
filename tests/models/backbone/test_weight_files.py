"""Safetensors files of a checkpoint: safetensors reads what is written, and transformers reads the index."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open

from mllm.models.backbone.weight_files import TensorHeader, file_names, weight_files, write_index, write_safetensors


def test_safetensors_reads_the_written_file(tmp_path: Path) -> None:
    values = {
        "wide": torch.arange(6, dtype=torch.float32).view(2, 3).T,
        "half": torch.tensor([1.5, -2.0, 3.0]).bfloat16(),
        "one": torch.tensor(True),
        "none": torch.zeros(0, 4, dtype=torch.int64),
    }
    dtypes = {"wide": "F32", "half": "BF16", "one": "BOOL", "none": "I64"}
    headers = [TensorHeader(name, dtypes[name], tuple(value.shape)) for name, value in values.items()]
    write_safetensors(tmp_path / "x.safetensors", headers, values.values())
    assert os.listdir(tmp_path) == ["x.safetensors"]
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        for name, value in values.items():
            assert torch.equal(opened.get_tensor(name), value)
            assert opened.get_tensor(name).dtype == value.dtype


def test_the_files_of_a_checkpoint_are_those_of_its_index(tmp_path: Path) -> None:
    assert weight_files(tmp_path) == []
    names = file_names(2)
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write_index(tmp_path, {"b": names[0], "a": names[1], "c": names[1]}, total_size=12)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 12}, "weight_map": {"a": names[1], "b": names[0], "c": names[1]}}
    assert weight_files(tmp_path) == [tmp_path / name for name in names]
    (tmp_path / file_names(1)[0]).touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
