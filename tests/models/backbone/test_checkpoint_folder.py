"""Tests of the location of checkpoints and of incomplete folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.models.backbone.checkpoint_folder import find_checkpoint


def test_local_folders_and_hub_ids_are_distinguished(
    tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(str(tiny_llava)) == str(tiny_llava)
    assert find_checkpoint("google/medgemma-4b-it") == "google/medgemma-4b-it"
    assert find_checkpoint("gpt2") == "gpt2"
    (tmp_path / "models").mkdir()
    for name in ("ckpt/x", "./x", "a/b/c", "/nowhere/x", "models/x"):
        with pytest.raises(ConfigError, match="there is no checkpoint in"):
            find_checkpoint(name)


def test_missing_weights_name_the_download_script_and_similar_names(tmp_path: Path, tiny_llava: Path) -> None:
    shutil.copytree(tiny_llava, tmp_path / "medgemma-4b-it")
    with pytest.raises(ConfigError) as excinfo:
        find_checkpoint(str(tmp_path / "medgemma-4b"))
    assert "bash scripts/download_medgemma.sh" in str(excinfo.value)
    assert "similar names in its parent folder: medgemma-4b-it" in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


def test_incomplete_folders_are_refused(copy: Path) -> None:
    weights = (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    with pytest.raises(ConfigError, match="no weights"):
        find_checkpoint(str(copy))
    index = {"weight_map": {"a": weights.name, "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="lacks 1 of 2 weight files .first model-00002-of-00002.safetensors."):
        find_checkpoint(str(copy))
    (copy / "config.json").rename(copy / "adapter_config.json")
    with pytest.raises(ConfigError, match="contains a LoRA adapter .set it as adapter_path."):
        find_checkpoint(str(copy))
    (copy / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match="contains no config.json"):
        find_checkpoint(str(copy))
    with pytest.raises(ConfigError, match="is a file"):
        find_checkpoint(str(weights))


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("model-Q4_K_M.gguf", "contains weights for llama.cpp .GGUF., which cannot be trained"),
        ("model_index.json", "contains a diffusion model"),
        (
            "adapter/adapter_config.json",
            "contains a run .set adapter_path to its adapter",
        ),
    ],
)
def test_folders_of_other_programs_are_named(tmp_path: Path, file: str, sentence: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ConfigError, match=sentence) as excinfo:
        find_checkpoint(str(tmp_path))
    assert "\n" not in str(excinfo.value)
