"""Tests of the reader of tensors: one or several files, parts of tensors, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mllm.errors import ConfigError
from mllm.export.gguf.weights import Weights, fixed


def test_rows_beyond_the_end_are_zero_and_an_offset_is_added(tmp_path: Path) -> None:
    value = torch.arange(12.0).view(4, 3)
    save_file({"a": value.bfloat16()}, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    assert torch.equal(weights.read("a", 1, 3), value[1:3])
    assert torch.equal(weights.read("a", 3, 6), torch.cat([value[3:], torch.zeros(2, 3)]))
    assert torch.equal(weights.read("a", 5, 7), torch.zeros(2, 3))
    assert torch.equal(weights.tensor("a"), value)
    assert weights.tensor("a").dtype == torch.float32
    planned = weights.planned("a", "b", rows=2, offset=1.0)
    assert (planned.name, planned.shape) == ("b", (2, 3))
    assert torch.equal(planned.read(0, 2), value[:2] + 1)
    assert torch.equal(fixed("c", value.half()).read(1, 2), value[1:2])


def test_shards_are_read_as_one_in_the_order_of_layers(tmp_path: Path) -> None:
    names = ["layers.10.a", "layers.2.a", "layers.2.b"]
    for index, name in enumerate(names):
        save_file({name: torch.full((2,), float(index))}, tmp_path / f"model-{index}.safetensors")
    weight_map = {name: f"model-{index}.safetensors" for index, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    weights = Weights(tmp_path)
    assert list(weights) == ["layers.2.a", "layers.2.b", "layers.10.a"]
    assert weights.tensor("layers.2.b").tolist() == [2, 2]
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model-1\.safetensors cannot be read .*: download or export it again"):
        Weights(tmp_path)


def test_tensors_of_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains no model.safetensors: load it with transformers and save it again"):
        Weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="model.safetensors cannot be read"):
        Weights(tmp_path)
    save_file({"a": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="contains a as U8: quantized weights cannot become a GGUF file"):
        Weights(tmp_path)
