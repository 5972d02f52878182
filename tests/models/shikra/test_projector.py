"""Projectors in files of the original LLaVA."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mllm.errors import ConfigError
from mllm.models.shikra.projector import is_single, read_projector, to_llava


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_both_kinds_are_read_from_both_files(make_projector, tmp_path, single, prefix, suffix):
    state = {prefix + name.removeprefix("model."): tensor for name, tensor in make_projector(single).items()}
    path = tmp_path / f"mm_projector{suffix}"
    if suffix == ".bin":
        torch.save(state, path)
    else:
        save_file(state, path)
    tensors = read_projector(path)
    assert is_single(tensors) is single
    llava, patches = to_llava(tensors), torch.randn(3, 64)
    assert set(llava) == {f"linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")}
    first = patches @ llava["linear_1.weight"].T + llava["linear_1.bias"]
    second = first @ llava["linear_2.weight"].T + llava["linear_2.bias"]
    assert torch.equal(second, first) is single


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        read_projector(tmp_path / "absent.bin")
    (tmp_path / "text.bin").write_text("no tensors")
    with pytest.raises(ConfigError, match="cannot be read as tensors"):
        read_projector(tmp_path / "text.bin")
    torch.save(torch.ones(3), tmp_path / "one.bin")
    with pytest.raises(ConfigError, match="has no named tensors"):
        read_projector(tmp_path / "one.bin")
    torch.save({"model.mm_projector.model.0.weight": torch.ones(1)}, tmp_path / "qformer.bin")
    with pytest.raises(ConfigError, match=r"has model\.0\.weight, but a projector has"):
        read_projector(tmp_path / "qformer.bin")
