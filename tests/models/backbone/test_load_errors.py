"""Tests of the messages for errors of the Hugging Face libraries."""

from __future__ import annotations

import errno
import json
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import GPT2Tokenizer, SmolVLMProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import import_utils

from mllm.errors import ConfigError, errors_of_row
from mllm.models.backbone.load_errors import explained
from mllm.models.backbone.loading import load_config, load_processor
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
    with pytest.raises(ConfigError, match=sentence) as excinfo, explained("org/name"):
        try:
            raise kind("401", response=response)
        except kind as cause:
            raise OSError("You are trying to access a gated repo.") from cause  # as transformers wraps it
    assert "`hf auth login`" in str(excinfo.value) and "`huggingface-cli login`" in str(excinfo.value)


@pytest.mark.parametrize(
    ("needed", "package"),
    [
        (import_utils.SKLEARN_IMPORT_ERROR.format("AriaProcessor"), "scikit-learn"),
        (import_utils.BS4_IMPORT_ERROR.format("MarkupLM"), "beautifulsoup4"),
        (import_utils.SENTENCEPIECE_IMPORT_ERROR.format("T5Tokenizer"), "sentencepiece"),
        ("Loading a GPTQ quantized model requires gptqmodel (`pip install gptqmodel`) library.", "gptqmodel"),
    ],
)
def test_a_missing_package_is_named_with_its_command(needed: str, package: str) -> None:
    sentence = f"needs the package {package}, which is not installed: pip install {package}$"
    with pytest.raises(ConfigError, match=f"^'org/name' {sentence}"), explained("org/name"):
        raise ImportError(needed)
    with pytest.raises(ConfigError, match=f"^F, line 2: the row {sentence}"), errors_of_row("F, line 2"):
        raise ImportError(needed)


def test_a_processor_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing_smolvlm, "num2words", None)  # as where the package is not installed
    sentence = "needs the package num2words, which is not installed: pip install num2words"
    with pytest.raises(ConfigError, match=sentence), explained("org/name"):
        SmolVLMProcessor(image_processor=None, tokenizer=GPT2Tokenizer(), video_processor=None)


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


def test_missing_files_of_processor_and_tokenizer_are_named(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_qwen2_vl, tmp_path / "model"))
    for file in folder.glob("*processor*"):
        file.unlink()
    sentence = "lacks the files of its processor .processor_config.json or preprocessor_config.json."
    with pytest.raises(ConfigError, match=sentence) as excinfo:
        load_processor(str(folder))
    assert "huggingface.co/models" not in str(excinfo.value)
    for file in [*folder.glob("tokenizer*"), *folder.glob("*vocab*")]:
        file.unlink()
    with pytest.raises(ConfigError, match="lacks the files of its tokenizer .tokenizer.json."):
        load_text_processor(str(folder))


def test_a_repository_of_the_hub_without_a_config_is_refused() -> None:
    sentence = "'org/name' has no config.json, so it is not a checkpoint of transformers"
    with pytest.raises(ConfigError, match=sentence), explained("org/name"):
        raise OSError("org/name does not appear to have a file named config.json. Checkout ...")


@pytest.mark.parametrize("cause", [LocalEntryNotFoundError("not in the cache"), OfflineModeIsEnabled("offline")])
def test_the_error_of_the_hub_is_found_between_those_of_transformers_and_the_network(cause: Exception) -> None:
    with pytest.raises(ConfigError, match="the hub cannot be reached") as excinfo, explained("org/name"):
        try:
            try:
                raise RuntimeError("[Errno -2] Name or service not known")
            except RuntimeError as network:
                raise cause from network
        except OSError as hub:
            raise OSError("We couldn't connect to 'https://huggingface.co'") from hub
    assert "We couldn't" not in str(excinfo.value)


def test_an_unreachable_hub_receives_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port of this machine refuses the connection."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        load_config("org/name")
    assert waits == []  # the library waits between attempts
