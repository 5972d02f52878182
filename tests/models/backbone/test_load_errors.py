"""Tests of the messages for errors of the Hugging Face libraries."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from mllm.errors import ConfigError
from mllm.models.backbone.load_errors import explained
from mllm.models.encoding.text_processor import load_text_processor
from mllm.tiny.checkpoints import write_tiny


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (GatedRepoError, "gated model: accept its license at https://huggingface.co/org/name"),
        (RepositoryNotFoundError, "neither"),
    ],
)
def test_gated_and_unknown_models_give_the_login_command(kind: type[Exception], sentence: str) -> None:
    response = SimpleNamespace(headers={}, request=None)  # whichever HTTP client the hub library uses
    with pytest.raises(ConfigError, match=sentence) as caught, explained("org/name"):
        try:
            raise kind("401", response=response)
        except kind as cause:
            raise OSError("You are trying to access a gated repo.") from cause  # as transformers wraps it
    assert "`hf auth login`" in str(caught.value) and "`huggingface-cli login`" in str(caught.value)


def test_errors_of_memory_and_of_the_file_system_are_not_converted() -> None:
    with pytest.raises(OSError, match="full"), explained("x"):
        raise OSError(errno.ENOSPC, "disk full")
    with pytest.raises(MemoryError), explained("x"):
        raise MemoryError


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_of_a_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    folder = write_tiny("gemma3n", tmp_path / "model")
    (folder / name).write_bytes((folder / name).read_bytes()[:-20] + b"\xff")
    with pytest.raises(ConfigError, match=rf"'{folder}' cannot be loaded .*{name} is damaged; download it again"):
        load_text_processor(str(folder))


def test_a_value_of_another_type_in_a_file_of_the_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_tiny("gemma3n", tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": "many"}))
    with pytest.raises(ConfigError, match=rf"'{folder}' cannot be loaded"):
        load_text_processor(str(folder))
