from __future__ import annotations

import json

import pytest

from mllm.config.checkpoint import Checkpoint, inspect_checkpoint
from mllm.errors import ConfigError


def test_the_config_of_a_folder_is_read(tmp_path):
    values = {"model_type": "gemma3", "mm_tokens_per_image": 16, "vision_config": {"image_size": 56, "patch_size": 7}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    checkpoint = inspect_checkpoint(str(tmp_path))
    assert checkpoint == Checkpoint(
        "gemma3", str(tmp_path), image_size=56, patch_size=7, image_tokens=16, keys=frozenset(values)
    )
    assert checkpoint.is_gemma and checkpoint.title == "Gemma 3"


def test_a_name_is_only_a_name(tmp_path):
    assert inspect_checkpoint("google/medgemma-4b-it").title == "Gemma 3"
    assert inspect_checkpoint("google/gemma-2b").title == "Gemma"
    assert not inspect_checkpoint("lmsys/vicuna-7b").is_gemma
    assert inspect_checkpoint(str(tmp_path)).model_type is None


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json is not the config of a checkpoint: "):
        inspect_checkpoint(str(tmp_path))
