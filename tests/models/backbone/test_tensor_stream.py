"""Slices written block by block equal indexed tensors, in a file that safetensors reads."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mllm.models.backbone.tensor_stream import Cut, spans_of, write_cuts

TENSORS = {
    "wide": torch.arange(6 * 40, dtype=torch.float32).reshape(6, 40),
    "half": torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "odd": torch.tensor([True, False, True]),
    "count": torch.tensor(3),
    "image": torch.randn(2, 3, 4, 5),
    "empty": torch.zeros(0, 4),
    "float8": torch.randn(3, 3).to(torch.float8_e4m3fn),
}


@pytest.fixture
def opened(tmp_path):
    save_file(TENSORS, tmp_path / "source.safetensors", {"format": "pt"})
    with safe_open(tmp_path / "source.safetensors", "pt") as handle:
        yield handle


class Watched:
    """Slice that records the number of rows of each read."""

    def __init__(self, handle: Any):
        self.handle, self.asked = handle, []

    def get_slice(self, name: str) -> Any:
        whole, reads = self.handle.get_slice(name), self.asked

        class Slice:
            get_shape, get_dtype = whole.get_shape, whole.get_dtype

            def __getitem__(self, rows: slice) -> torch.Tensor:
                reads.append(rows.stop - rows.start)
                return whole[rows]

        return Slice()


def test_a_file_of_cuts(opened, tmp_path):
    cuts = {name: Cut(opened, name) for name in TENSORS}
    cuts["rows"] = Cut(opened, "half", rows=(range(5, 7), range(2)))
    cuts["columns"] = Cut(opened, "wide", columns=(range(3, 9), range(39, 40)))
    cuts["both"] = Cut(opened, "wide", rows=(range(1, 2),), columns=(range(2),))
    written: list[int] = []
    write_cuts(tmp_path / "cuts.safetensors", cuts, written.append)
    actual = load_file(tmp_path / "cuts.safetensors")
    expected = TENSORS | {
        "rows": TENSORS["half"][[5, 6, 0, 1]],
        "columns": TENSORS["wide"][:, [3, 4, 5, 6, 7, 8, 39]],
        "both": TENSORS["wide"][1:2, :2],
    }
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        header = cuts[name].header(name)
        assert actual[name].dtype == tensor.dtype and actual[name].shape == tensor.shape == header.shape
        assert actual[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name
        assert header.size == tensor.nbytes and header.elements == tensor.numel()
    assert sum(written) == sum(tensor.nbytes for tensor in expected.values())
    with safe_open(tmp_path / "cuts.safetensors", "pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_the_bytes_equal_those_of_safetensors(opened, tmp_path):
    write_cuts(tmp_path / "again.safetensors", {name: Cut(opened, name) for name in TENSORS}, lambda size: None)
    assert (tmp_path / "again.safetensors").read_bytes()[8:].rstrip() == (tmp_path / "source.safetensors").read_bytes()[
        8:
    ].rstrip()


@pytest.mark.parametrize("block", [1, 160, 500, 10**6])
def test_memory_is_bounded(opened, block):
    watched = Watched(opened)
    for spans in ((range(6),), (range(4, 6), range(3))):
        blocks = list(Cut(watched, "wide", rows=spans, columns=(range(10, 20),)).blocks(block))
        rows = list(itertools.chain(*spans))
        assert torch.equal(torch.cat(blocks), TENSORS["wide"][rows, 10:20])
    assert max(watched.asked) == max(1, min(6, block // 160))


def test_spans_of_adjacent_indices_are_combined():
    assert spans_of([0, 1, 3], 16) == (range(32), range(48, 64))
    assert spans_of([2]) == (range(2, 3),)
    assert spans_of([]) == ()
