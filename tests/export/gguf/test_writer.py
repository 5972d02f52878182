"""Tests of the writer of GGUF files: atomic, a few rows at a time, with correct values."""

from __future__ import annotations

import json
import logging
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from mllm.errors import ConfigError
from mllm.export.gguf import writer
from mllm.export.gguf.weights import PlannedTensor, Weights, fixed
from mllm.export.gguf.writer import TYPES, Kind, kind_of, log_narrow, write_gguf

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts" / "bench"))

from interleaved import resident_memory  # noqa: E402


def write(path: Path, kinds: dict[str, Kind], tensors: list[PlannedTensor]) -> Path:
    return write_gguf(
        path, "llama", lambda to: to.add_name("tiny"), tensors, [kinds[tensor.name] for tensor in tensors]
    )


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [("f32", 0), ("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 0.02), ("q5_1", 0.2), ("q5_0", 0.2), ("q4_1", 0.3)],
)
def test_values_and_metadata_are_read_back(kind: str, allowed: float, tmp_path: Path) -> None:
    value = torch.randn((33, 64), generator=torch.Generator().manual_seed(0))
    planned = [fixed("blk.0.attn_q.weight", value), fixed("output_norm.weight", value[0])]
    kinds = {planned[0].name: TYPES[kind][0], planned[1].name: Kind.F32}
    reader = gguf.GGUFReader(write(tmp_path / "new" / "model.gguf", kinds, planned))
    assert reader.fields["general.name"].contents() == "tiny"
    for actual, tensor in zip(reader.tensors, (value, value[0]), strict=True):
        assert actual.tensor_type == kinds[actual.name]
        values = gguf.quants.dequantize(actual.data, actual.tensor_type)
        assert np.abs(values - tensor.numpy()).max() <= allowed


def test_a_tensor_is_read_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(writer, "_CHUNK", 10 * 64)
    value, reads = torch.randn(25, 64), []

    def read(start: int, stop: int) -> Tensor:
        reads.append((start, stop))
        return value[start:stop]

    out = write(tmp_path / "out.gguf", {"a.weight": Kind.F16}, [PlannedTensor("a.weight", (25, 64), read)])
    assert reads == [(0, 10), (10, 20), (20, 25)]
    assert np.array_equal(gguf.GGUFReader(out).tensors[0].data, value.half().numpy())


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    """A sparse file of zeros, 0.5 GB in fp32, which would be visible in the memory if it were read completely."""
    rows, width = 128, 1 << 20
    header = {"big.weight": {"dtype": "BF16", "shape": [rows, width], "data_offsets": [0, 2 * rows * width]}}
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + 2 * rows * width)
    planned = Weights(tmp_path).planned("big.weight", "big.weight")
    write(tmp_path / "warm.gguf", {"a.weight": Kind.F16}, [fixed("a.weight", torch.zeros(4, width))])
    with resident_memory() as small:
        pass
    with resident_memory() as peak:
        out = write(tmp_path / "out.gguf", {"big.weight": Kind.F16}, [planned])
    assert out.stat().st_size > 2 * rows * width
    assert peak.bytes - small.bytes < 150e6


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (float("nan"), Kind.Q8_0, "blk.0.ffn_up.weight contains NaN or infinity, so it was not exported"),
        (1e6, Kind.F16, "values beyond the range of f16, so it was not exported: use bf16"),
    ],
)
def test_values_outside_the_range_of_the_type_are_refused(
    value: float, kind: Kind, message: str, tmp_path: Path
) -> None:
    tensor = torch.ones(4, 32)
    tensor[3, 1] = value
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "out.gguf", {"blk.0.ffn_up.weight": kind}, [fixed("blk.0.ffn_up.weight", tensor)])
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_text() == "mine"


def test_sensitive_tensors_keep_a_larger_type(caplog: pytest.LogCaptureFixture) -> None:
    def kind(name: str, expected: str, *shape: int) -> str:
        return kind_of(fixed(name, torch.zeros(shape)), TYPES[expected][0]).name

    assert kind("blk.0.attn_q.weight", "q4_0", 8, 64) == "Q4_0"
    assert kind("blk.0.attn_q.weight", "q4_0", 8, 48) == "F16"
    assert kind("blk.0.attn_norm.weight", "q4_0", 64) == kind("blk.0.attn_k_norm.weight", "f16", 2, 64) == "F32"
    assert kind("blk.0.altup_router.weight", "q8_0", 4, 64) == "F32"
    assert kind("token_embd.weight", "q4_0", 8, 64) == kind("output.weight", "q5_1", 8, 64) == "Q8_0"
    assert kind("altup_proj.weight", "q8_0", 3, 64, 64) == "F16"
    assert kind("altup_proj.weight", "f32", 3, 64, 64) == "F32"
    tensors = [fixed("a.weight", torch.zeros(2, 48)), fixed("b.weight", torch.zeros(2, 64))]
    with caplog.at_level(logging.INFO, "mllm"):
        log_narrow(tensors, [kind_of(tensor, Kind.Q8_0) for tensor in tensors], Kind.Q8_0)
    assert "1 tensors are stored as f16: their row length is not a multiple of 32 values" in caplog.text
