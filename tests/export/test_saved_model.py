"""Tests of reading `model_args` back from exported folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.errors import ConfigError
from mllm.export.saved_model import adapter_args, local_name, whole_model_args
from mllm.export.settings import write_settings
from mllm.family import FAMILIES

SETTINGS = dict(type="medgemma", image_size=448, image_token_len=64, max_length=300, system="Be brief.", turn_end=None)


@pytest.fixture
def adapter(generating_adapter: Path, tmp_path: Path) -> Path:
    """A copy of the adapter that a test may change."""
    return Path(shutil.copytree(generating_adapter, tmp_path / "run" / "adapter"))


def test_a_foreign_adapter_has_the_defaults_of_its_base(adapter: Path, generating_base: Path, tiny_llava: Path) -> None:
    args = adapter_args(str(adapter))
    assert (args.type, args.model_name_or_path) == ("medgemma", str(generating_base))
    assert (args.adapter_path, args.lora_r, args.image_token_len) == (str(adapter), None, None)
    assert adapter_args(str(adapter), str(tiny_llava)).type == "image-text"
    assert adapter_args(str(adapter), type="image-text").type == "image-text"


def test_our_adapter_has_the_settings_of_its_training(adapter: Path) -> None:
    write_settings(adapter, SETTINGS)
    args = adapter_args(str(adapter))
    assert {key: getattr(args, key) for key in SETTINGS} == SETTINGS
    assert adapter_args(str(adapter), system="Be long.", load_in_4bit=True).system == "Be long."


def test_a_run_folder_is_accepted_for_its_adapter(adapter: Path) -> None:
    assert adapter_args(str(adapter.parent)).adapter_path == str(adapter)


def test_folders_of_runs_and_models_are_not_accepted_as_adapters(tmp_path: Path, generating_base: Path) -> None:
    (tmp_path / "runs/latest").mkdir(parents=True)
    (tmp_path / "runs/latest/config.py").write_text("")
    with pytest.raises(ConfigError, match="is a folder of runs; pass one of them, such as .*latest"):
        adapter_args(str(tmp_path / "runs"))
    for named in ("runs/latest", "runs/latest/adapter"):
        with pytest.raises(ConfigError, match="is a run without an adapter: .*finetune.py --resume"):
            adapter_args(str(tmp_path / named))
    with pytest.raises(ConfigError, match="contains a whole model and no adapter; pass it as --model"):
        adapter_args(str(generating_base))


@pytest.mark.parametrize(("inner", "option"), [("merged", "--model"), ("student", "--model"), ("adapter", "--adapter")])
def test_a_run_folder_is_not_accepted_as_a_model(tmp_path: Path, inner: str, option: str) -> None:
    (tmp_path / inner).mkdir()
    with pytest.raises(ConfigError, match=f"is a run folder, not a model; pass {option} .*{inner}"):
        whole_model_args(str(tmp_path))


def test_a_relative_base_is_also_sought_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_name("mllm/config") == str(CHECKOUT / "mllm/config")
    (tmp_path / "mllm/config").mkdir(parents=True)
    assert local_name("mllm/config") == "mllm/config"
    assert local_name("google/medgemma-4b-it") == "google/medgemma-4b-it"


def test_an_adapter_without_a_base_name_is_refused(adapter: Path, generating_base: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="names no base model; pass it as --base"):
        adapter_args(str(adapter))
    assert adapter_args(str(adapter), str(generating_base)).model_name_or_path == str(generating_base)


def test_a_similar_name_is_suggested_for_an_absent_folder(adapter: Path) -> None:
    with pytest.raises(ConfigError, match=r"--adapter .*adaptre does not exist: did you mean .*adapter'\?"):
        adapter_args(str(adapter.with_name("adaptre")))
    with pytest.raises(ConfigError, match=r"adapter_config.json is a file: name the folder of the adapter"):
        adapter_args(str(adapter / "adapter_config.json"))


def test_an_adapter_is_not_accepted_as_a_model(adapter: Path, generating_base: Path) -> None:
    with pytest.raises(ConfigError, match="is a LoRA adapter; pass it as --adapter"):
        whole_model_args(str(adapter))
    args = whole_model_args(str(generating_base))
    assert (args.adapter_path, args.lora_r, args.type) == (None, None, "medgemma")


@pytest.mark.parametrize(
    ("model_type", "type"),
    [
        (None, "medgemma"),
        ("gemma3", "medgemma"),
        ("gemma3n", "image-text"),
        ("llava", "image-text"),
        ("gemma3_text", "causal-lm"),
        ("gemma3n_text", "causal-lm"),
        ("llama", "causal-lm"),
        ("t5gemma", "seq2seq"),
        ("t5", "seq2seq"),
        ("unheard_of", "image-text"),
    ],
)
def test_an_architecture_has_the_type_that_reads_it(model_type: str | None, type: str) -> None:
    assert FAMILIES.for_architecture(model_type).type == type
