"""Written tensors are read back, compared with those in memory, and refused if anything differs."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mllm.errors import ConfigError
from mllm.models.adapters.written import compare_written, refuse_sharded_tensors, save_compared

TENSORS = {
    "a": torch.arange(6.0).view(2, 3).T,
    "b": torch.tensor(float("nan")),
    "c": torch.ones(2, dtype=torch.bfloat16),
}


def test_a_file_contains_the_tensors_bit_by_bit(tmp_path):
    save_compared(tmp_path / "file.safetensors", TENSORS)
    written = load_file(tmp_path / "file.safetensors")
    assert torch.equal(written["a"], TENSORS["a"]) and written["b"].isnan() and torch.equal(written["c"], TENSORS["c"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": None}, "a is missing"),
        ({"d": torch.ones(1)}, "it has d, which the model does not have"),
        ({"a": torch.zeros(0)}, r"a has shape \(0,\) instead of \(3, 2\)"),
        ({"c": torch.ones(2)}, "c has dtype torch.float32 instead of torch.bfloat16"),
        ({"b": torch.tensor(0.0)}, "b has other values"),
    ],
)
def test_a_file_that_differs_is_refused(tmp_path, change, message):
    path = tmp_path / "file.safetensors"
    changed = {key: tensor.contiguous() for key, tensor in (TENSORS | change).items() if tensor is not None}
    save_file(changed, path)
    with pytest.raises(
        ConfigError, match=rf"file.safetensors differs from the tensors that were written to it: {message}; "
    ):
        compare_written(path, TENSORS, set(TENSORS))


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    save_compared(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="cannot be read"):
        compare_written(path, TENSORS, set(TENSORS))


@pytest.mark.parametrize("part", [torch.zeros(0), torch.zeros(5), torch.zeros(1, 4)])
def test_sharded_weights_are_refused(tmp_path, part):
    """ZeRO-3 leaves tensors of shape (0,), FSDP flattened parts or some of the rows."""
    layer = nn.Linear(4, 3)
    refuse_sharded_tensors(layer)
    layer.weight = nn.Parameter(part)
    with pytest.raises(ConfigError, match=r"weight has shape .* in this process instead of \(3, 4\)"):
        refuse_sharded_tensors(layer)


def test_empty_tensors_are_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"a has shape \(0,\) in this process"):
        save_compared(tmp_path / "file.safetensors", {"a": torch.zeros(0)})
    assert not list(tmp_path.iterdir())
